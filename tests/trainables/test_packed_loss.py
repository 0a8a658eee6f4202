"""The chunked loss is torch's, and so is its gradient."""

from __future__ import annotations

import pytest
import torch

from lorafront.trainables import packed_loss
from lorafront.trainables.packed_loss import OutputLayer, TokenLoss, chunks


@pytest.mark.parametrize("shaped", [{}, {"scale": 0.5}, {"cap": 3.0}, {"scale": 2.0, "cap": 5.0}])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradient_are_those_of_whole_logits(
    dtype: torch.dtype, bias: bool, shaped: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the targets need many chunks, and where one is far from what is expected."""
    monkeypatch.setitem(packed_loss.CHUNK_BYTES, "cpu", 1)
    torch.manual_seed(0)
    head = OutputLayer(torch.nn.Linear(16, 50, bias=bias).to(dtype).requires_grad_(requires_grad=False), **shaped)
    hidden = (10 * torch.randn(1200, 16)).to(dtype).requires_grad_()
    targets, weights = torch.randint(50, (1200,)), torch.rand(1200)
    losses = TokenLoss.apply(hidden, head, targets, weights)
    (losses * weights).sum().backward()
    other = hidden.detach().clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(head.logits(other).float(), targets, reduction="none")
    (expected * weights).sum().backward()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    off = (hidden.grad - other.grad).float().norm() / other.grad.float().norm()
    assert float(off) < (1e-2 if dtype == torch.bfloat16 else 1e-5)
    assert len(chunks(1200, 50, "cpu")) == 3
