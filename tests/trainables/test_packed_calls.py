"""What a pack computes in its own way is what torch computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lorafront.trainables.packed_calls import SHORT, PackedCalls

SHAPE = (3, 2, 20, 16)  # rows, heads, tokens, features


def padding(*, additive: bool) -> torch.Tensor:
    """The last tokens of a row are none; and all see only what stands before them."""
    seen = torch.ones(20, 20, dtype=torch.bool).tril().repeat(3, 1, 1, 1)
    seen[1, :, :, 15:] = False
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf) if additive else seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": padding(additive=False)},
        {"attn_mask": padding(additive=True)},
    ],
)
def test_short_attention_is_torchs(options: dict[str, Any]) -> None:
    """Outputs and gradients of 16 bits are as close to those of 64 as torch's own kernel is, within a half."""
    torch.manual_seed(0)
    numbers = [torch.randn(SHAPE) for _ in range(4)]

    def computed(dtype: torch.dtype, mode: Any) -> list[torch.Tensor]:
        *inputs, gradient = (x.bfloat16().to(dtype) for x in numbers)
        for x in inputs:
            x.requires_grad_()
        mask = options.get("attn_mask")
        own = options if mask is None or mask.dtype == torch.bool else {**options, "attn_mask": mask.to(dtype)}
        with mode:
            y = scaled_dot_product_attention(*inputs, **own)
        y.backward(gradient)
        return [y.detach().double(), *(x.grad.double() for x in inputs if x.grad is not None)]

    exact = computed(torch.float64, torch.enable_grad())
    torchs = computed(torch.bfloat16, torch.enable_grad())
    ours = computed(torch.bfloat16, PackedCalls(None, on_cpu=True))
    assert not any(torch.equal(one, other) for one, other in zip(torchs[1:], ours[1:], strict=True))
    for wanted, its, found in zip(exact, torchs, ours, strict=True):
        assert (found - wanted).norm() <= 1.5 * (its - wanted).norm() + 1e-6


def test_long_rows_go_to_torchs_kernel_in_float32() -> None:
    """Which gives what it would give in float32, rounded."""
    x = torch.randn(1, 2, SHORT + 1, 8).bfloat16()
    with PackedCalls(None, on_cpu=True):
        found = scaled_dot_product_attention(x, x, x, is_causal=True)
    assert torch.equal(found, scaled_dot_product_attention(x.float(), x.float(), x.float(), is_causal=True).bfloat16())
