"""Cross-entropy of the next token without the logits of a whole pack.

Logits exist for one chunk of targets at a time, forward and backward in one go (Liger Kernel, Hsu et al. 2024,
arXiv:2410.10989); tokens that are no targets never meet the output layer.

Shape legend: n targets of all slots, h hidden size, v vocabulary, c targets of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_BYTES = {"cuda": 2**26, "cpu": 2**22}  # of float32 logits at once; in a CPU's cache
LEAST_CHUNK = 512  # fewer read the output layer more often than they compute with it


@dataclass(frozen=True)
class OutputLayer:
    """The last linear module, and what some models do to its outputs.

    Attributes:
        linear: frozen.
        scale: that they are multiplied by.
        cap: they are squeezed between minus and plus so much by tanh; 0 is none.
    """

    linear: torch.nn.Linear
    scale: float = 1.0
    cap: float = 0.0

    @classmethod
    def of(cls, model: PreTrainedModel) -> OutputLayer | None:
        """As its config says; None where the output layer is no linear module."""
        config, found = model.config.get_text_config(), model.get_output_embeddings()
        if type(found) is not torch.nn.Linear:
            return None
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return cls(found, float(scale), float(getattr(config, "final_logit_softcapping", None) or 0))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, v] in the model's dtype."""
        found: torch.Tensor = self.linear(hidden)
        if self.scale != 1:
            found = found * self.scale
        return torch.tanh(found / self.cap) * self.cap if self.cap else found

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float:
        """Derivative of the logits by the outputs of the linear module."""
        return self.scale * (1 - (logits / self.cap) ** 2) if self.cap else self.scale


class TokenLoss(torch.autograd.Function):
    """float32[n]: negative log-likelihood of each target."""

    @staticmethod
    def forward(
        ctx: Any, hidden_nh: torch.Tensor, head: OutputLayer, targets_n: torch.Tensor, weights_n: torch.Tensor
    ) -> torch.Tensor:
        """Compute the losses, and where it is asked for what backward will need.

        Args:
            ctx: torch's.
            hidden_nh: the states before the output layer.
            head: the output layer.
            targets_n: int64, the tokens that follow.
            weights_n: float32, what each loss will be multiplied by; so gradients of 16 bits are rounded as they are
                where the loss is scaled before it.
        """
        losses_n = torch.empty(len(targets_n), dtype=torch.float32, device=hidden_nh.device)
        gradient_nh = torch.empty_like(hidden_nh) if ctx.needs_input_grad[0] else None
        weight_vh = head.linear.weight
        for own in chunks(len(targets_n), len(weight_vh), hidden_nh.device.type):
            powers_cv = head.logits(hidden_nh[own]).float()
            slope_cv = head.slope(powers_cv)
            target_c1 = targets_n[own, None]
            powers_cv -= powers_cv.amax(dim=1, keepdim=True)
            meant_c = powers_cv.gather(1, target_c1)[:, 0]
            sum_c = powers_cv.exp_().sum(dim=1)  # once, for the loss and for its gradient
            losses_n[own] = sum_c.log() - meant_c
            if gradient_nh is not None:
                powers_cv *= (weights_n[own] / sum_c)[:, None]
                powers_cv.scatter_add_(1, target_c1, -weights_n[own, None])
                powers_cv *= slope_cv
                gradient_nh[own] = powers_cv.to(weight_vh.dtype) @ weight_vh
        ctx.gradient = gradient_nh
        return losses_n

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        """What forward kept: the losses are multiplied by their weights and added up, nothing else."""
        gradient, ctx.gradient = ctx.gradient, None
        return gradient, None, None, None


def chunks(targets: int, vocabulary: int, on: str) -> list[slice]:
    """Slices of the targets whose logits take `CHUNK_BYTES` of that kind of device at most."""
    size = max(LEAST_CHUNK, CHUNK_BYTES.get(on, CHUNK_BYTES["cuda"]) // (4 * vocabulary))
    return [slice(start, start + size) for start in range(0, targets, size)]
