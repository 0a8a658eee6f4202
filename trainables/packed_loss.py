"""Cross-entropy of the next token without the logits of a whole pack.

Logits exist for one chunk of targets at a time, forward and backward in one go (Liger Kernel, Hsu et al. 2024,
arXiv:2410.10989); tokens that are no targets never meet the output layer.

Shape legend: n targets of all slots, h hidden size, v vocabulary, c targets of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK_BYTES = 2**26  # of float32 logits at once
LEAST_CHUNK = 128


class TokenLoss(torch.autograd.Function):
    """float32[n]: negative log-likelihood of each target."""

    @staticmethod
    def forward(
        ctx: Any, hidden_nh: torch.Tensor, head: torch.nn.Linear, targets_n: torch.Tensor, weights_n: torch.Tensor
    ) -> torch.Tensor:
        """Compute the losses, and where it is asked for what backward will need.

        Args:
            ctx: torch's.
            hidden_nh: the states before the output layer.
            head: the output layer, frozen.
            targets_n: int64, the tokens that follow.
            weights_n: float32, what each loss will be multiplied by; so gradients of 16 bits are rounded as they are
                where the loss is scaled before it.
        """
        losses_n = torch.empty(len(targets_n), dtype=torch.float32, device=hidden_nh.device)
        gradient_nh = torch.empty_like(hidden_nh) if ctx.needs_input_grad[0] else None
        for own in chunks(len(targets_n), head.weight.shape[0]):
            logits_cv = head(hidden_nh[own]).float()
            logs_cv = torch.log_softmax(logits_cv, dim=-1)
            target_c1 = targets_n[own, None]
            losses_n[own] = -logs_cv.gather(1, target_c1)[:, 0]
            if gradient_nh is not None:
                slope_cv = logs_cv.exp_()
                slope_cv.scatter_add_(1, target_c1, slope_cv.new_full((), -1).expand(target_c1.shape))
                slope_cv *= weights_n[own, None]
                gradient_nh[own] = slope_cv.to(head.weight.dtype) @ head.weight
        ctx.gradient = gradient_nh
        return losses_n

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        """What forward kept: the losses are multiplied by their weights and added up, nothing else."""
        gradient, ctx.gradient = ctx.gradient, None
        return gradient, None, None, None


def chunks(targets: int, vocabulary: int) -> list[slice]:
    """Slices of the targets whose logits take `CHUNK_BYTES` at most."""
    size = max(LEAST_CHUNK, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, start + size) for start in range(0, targets, size)]
