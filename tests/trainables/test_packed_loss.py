"""The chunked loss is torch's, and so is its gradient."""

from __future__ import annotations

import pytest
import torch

from lorafront.trainables import packed_loss
from lorafront.trainables.packed_loss import TokenLoss, chunks


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradient_are_those_of_whole_logits(
    dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the targets need many chunks, and where one is far from what is expected."""
    monkeypatch.setattr(packed_loss, "CHUNK_BYTES", 1)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=bias).to(dtype).requires_grad_(requires_grad=False)
    hidden = (10 * torch.randn(300, 16)).to(dtype).requires_grad_()
    targets, weights = torch.randint(50, (300,)), torch.rand(300)
    losses = TokenLoss.apply(hidden, head, targets, weights)
    (losses * weights).sum().backward()
    other = hidden.detach().clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(head(other).float(), targets, reduction="none")
    (expected * weights).sum().backward()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad, other.grad)
    assert len(chunks(300, 50)) == 3
