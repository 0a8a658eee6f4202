"""What a pack computes in its own way inside transformers' code: the base's own dropout, and attention on a CPU.

GPT-2 and BERT drop in their hidden states and attention weights while they train; in a pack this is drawn from each
trial's seed instead of one generator for all. A mode catches these calls, so that the model's code stays as it is.

Shape legend: k slots, b rows of a slot, t tokens, h heads, w features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lorafront.trainables.keyed_random import keep, threshold

SHORT = 128  # tokens of a row up to which plain products are faster than torch's attention kernel on a CPU


class DropoutCalls(TorchFunctionMode):
    """Counts the calls that drop something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        self.count += _probability(func, args, kwargs or {}) > 0
        return func(*args, **(kwargs or {}))


@dataclass
class Draws:
    """Where a pass's masks come from.

    Attributes:
        keys: int32[k, s], one for each call in a pass.
        longest: tokens of the longest row that there is; places count on from row to row by it.
    """

    keys: torch.Tensor
    longest: int

    def dropped(self, x: torch.Tensor, site: int, probability: float) -> torch.Tensor:
        """[k b, …] with masks of each slot's own; the same whatever the batch is padded to."""
        keys = self.keys[:, site]
        places = self._places(x.shape[0] // len(keys), x.shape[1:-1], x.device)
        # Attention weights are as wide as the batch is padded; drawn at their full width, they do not depend on it.
        width = max(x.shape[-1], self.longest) if x.dim() == 4 else x.shape[-1]  # noqa: PLR2004  # [k b, h, t, t]
        kept = keep(keys, threshold(probability), places, width)[..., : x.shape[-1]].reshape(x.shape)
        return torch.where(kept, x / (1 - probability), 0)

    def _places(self, rows: int, between: torch.Size, on: torch.device) -> torch.Tensor:
        places = torch.arange(rows, dtype=torch.int32, device=on)
        for place, size in enumerate(between):
            stride = self.longest if place == len(between) - 1 else size
            places = (places[:, None] * stride + torch.arange(size, dtype=torch.int32, device=on)).flatten()
        return places


class ShortAttention(torch.autograd.Function):
    """Scaled dot-product attention over rows so short that all scores of a layer fit in a CPU's cache.

    Scores and weights are float32, as in torch's own kernels; products of weights are in the dtype of the values.
    """

    @staticmethod
    def forward(  # as torch's
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """[k b, h, t, w] of three such, and float32[…, t, t] that is added to the scores."""
        weights = torch.matmul(q.float(), k.float().mT).mul_(scale)
        weights = torch.softmax(weights if hidden is None else weights.add_(hidden), dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return weights.to(v.dtype) @ v

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of queries, keys and values."""
        q, k, v, weights = ctx.saved_tensors
        gy = gradients[0].to(v.dtype)
        g_weights = (gy @ v.mT).float()
        g_scores = g_weights.sub_((g_weights * weights).sum(-1, keepdim=True)).mul_(weights).mul_(ctx.scale).to(q.dtype)
        return g_scores @ k, g_scores.mT @ q, weights.to(v.dtype).mT @ gy, None, None


class PackedCalls(TorchFunctionMode):
    """While it is on, dropout draws from `draws`, call by call, and attention is computed as suits a CPU where asked.

    There torch's attention kernel takes two to six times as long in bfloat16 as in float32, most of all backward (torch
    2.13), and below a hundred tokens still half as long again as plain products; what each gives is rounded to the same
    dtype.
    """

    def __init__(self, draws: Draws | None, *, on_cpu: bool) -> None:
        """Args: draws: None where the base drops nothing. on_cpu: attention of 16 bits as suits a CPU."""
        super().__init__()
        self._draws = draws
        self._on_cpu = on_cpu
        self._site = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace what drops something, and attention."""
        kwargs = kwargs or {}
        if self._draws is None and func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)  # nearly all of a thousand calls in a pass
        if func is functional.scaled_dot_product_attention and self._on_cpu:
            with torch.autocast("cpu", enabled=False):  # it would narrow what is float32
                return self._attention(*args, **kwargs)
        return self._called(func, args, kwargs)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # as torch's
        **others: Any,
    ) -> torch.Tensor:
        tokens = key.shape[-2]
        plain = query.dtype == key.dtype == value.dtype and (attn_mask is None or not attn_mask.requires_grad)
        if tokens > SHORT or key.shape != query.shape or dropout_p or not plain:
            wide = [x.float() if x is not None and x.is_floating_point() else x for x in (query, key, value, attn_mask)]
            options = {"dropout_p": dropout_p, "is_causal": is_causal, **others}
            found: torch.Tensor = self._called(functional.scaled_dot_product_attention, wide, options)
            return found.to(query.dtype)
        scale = others.get("scale") or 1 / math.sqrt(query.shape[-1])
        if is_causal:
            attn_mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        least = torch.finfo(torch.float32).min  # finite: a row of which everything is hidden is no NaN
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape).masked_fill_(~attn_mask, least)
        elif attn_mask is not None:
            attn_mask = attn_mask.float().clamp(min=least)
        return ShortAttention.apply(query, key, value, attn_mask, scale)  # type: ignore[no-untyped-call,no-any-return]

    def _called(self, func: Any, args: Any, kwargs: Any) -> Any:
        probability = _probability(func, args, kwargs) if self._draws is not None else 0.0
        if self._draws is None or not probability:
            return func(*args, **kwargs)
        drop = partial(self._draws.dropped, site=self._site, probability=probability)
        self._site += 1
        if func is functional.dropout:
            return drop(args[0] if args else kwargs["input"])
        return _attention(drop, *args, **{name: value for name, value in kwargs.items() if name != "dropout_p"})


def _probability(func: Any, args: Any, kwargs: Any) -> float:
    """Of the call being one that drops: its probability; 0 where it drops nothing."""
    if func is functional.dropout:
        training = kwargs.get("training", args[2] if len(args) > 2 else True)  # noqa: PLR2004  # (input, p, training)
        return float(kwargs.get("p", args[1] if len(args) > 1 else 0.5)) if training else 0.0
    if func is functional.scaled_dot_product_attention:
        return float(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))  # noqa: PLR2004  # (q, k, v, mask, p)
    return 0.0


def _attention(
    drop: Callable[[torch.Tensor], torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Scaled dot-product attention by its definition in torch's documentation, with our dropout of the weights."""
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return drop(torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)) @ value
