"""Products of 16 bits on a processor without instructions for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import linear

from lorafront.trainables.cpu_products import widened_products
from lorafront.trainables.memory_meter import LiveStorages

SIXTEEN_BIT = (torch.bfloat16, torch.float16)


@pytest.fixture(params=SIXTEEN_BIT, ids=str)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """A dtype whose products are computed through float32, whatever this processor can do."""
    library = widened_products({request.param})
    yield request.param
    library._destroy()


def test_every_product_is_rounded_once_from_float32(dtype: torch.dtype) -> None:
    """Plain, batched, with a sum, in place, as a linear layer, and the gradients of all."""
    torch.manual_seed(0)
    x, w, plus = (torch.randn(3, 8, 8).to(dtype) for _ in range(3))
    x32, w32, plus32 = x.float(), w.float(), plus.float()
    assert torch.equal(x[0] @ w[0], (x32[0] @ w32[0]).to(dtype))
    assert torch.equal(torch.bmm(x, w), torch.bmm(x32, w32).to(dtype))
    assert torch.equal(
        torch.addmm(plus[0], x[0], w[0], alpha=0.5), plus32[0].addmm(x32[0], w32[0], alpha=0.5).to(dtype)
    )
    assert torch.equal(torch.baddbmm(plus, x, w, beta=2), torch.baddbmm(plus32, x32, w32, beta=2).to(dtype))
    there = plus.clone()
    assert there.baddbmm_(x, w) is there
    assert torch.equal(there, torch.baddbmm(plus32, x32, w32).to(dtype))
    assert torch.equal(plus[0].clone().addmm_(x[0], w[0]), torch.addmm(plus32[0], x32[0], w32[0]).to(dtype))

    weight, bias = w[0].clone().requires_grad_(), plus[0, 0].clone().requires_grad_()
    y = linear(x, weight, bias)
    y.backward(plus)
    assert y.dtype == dtype
    assert torch.equal(y, linear(x32, w32[0], plus32[0, 0]).to(dtype))
    assert weight.grad is not None
    flat_gradient, flat_x = plus32.reshape(-1, 8), x32.reshape(-1, 8)
    assert torch.equal(weight.grad, (flat_gradient.T @ flat_x).to(dtype))


def test_other_dtypes_are_left_alone(dtype: torch.dtype) -> None:
    """What has instructions is computed by them, in its own dtype."""
    for other in (torch.float32, torch.float64):
        x = torch.randn(4, 4, dtype=other)
        assert torch.equal(x @ x, torch.einsum("ij,jk->ik", x, x))
        assert (x @ x).dtype == other
    assert torch.equal(torch.eye(4, dtype=torch.int64) @ torch.arange(16).view(4, 4), torch.arange(16).view(4, 4))


def test_copies_in_float32_are_scratch_space(dtype: torch.dtype) -> None:
    """A count of live tensors sees the product and nothing else."""
    x = torch.ones(64, 64, dtype=dtype)
    with LiveStorages() as live:
        x @ x
    assert live.peak == x.nbytes
