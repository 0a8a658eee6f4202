"""Operations by shape alone make what the operations make, and never look at what is not there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from lorafront.trainables.contentless import Contentless

HUGE = 2**24  # rows and columns of a matrix that no machine holds: a pebibyte
Work = Callable[[torch.Tensor], object]


def described(value: object) -> list[tuple[object, ...]]:
    """Shape, stride, dtype and bytes of the storage of each tensor of a result."""
    found = value if isinstance(value, (tuple, list)) else [value]
    tensors = [one for one in found if isinstance(one, torch.Tensor)]
    return [(one.shape, one.stride(), one.dtype, one.untyped_storage().nbytes()) for one in tensors]


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.t() @ x,
        lambda x: x.view(2, 3, 8).transpose(1, 2).contiguous().unbind(0),
        lambda x: functional.softmax(x.to(torch.bfloat16), -1, dtype=torch.float32),
        lambda x: (x * 2, x * True, x.to(torch.int32) * 2.5, x.to(torch.int32) * 2),
        lambda x: x.add_(1).mul_(x).sum(0, keepdim=True),
        lambda x: torch.topk(x, 3),
        lambda x: functional.scaled_dot_product_attention(*[x.view(1, 2, 6, 4)] * 3, is_causal=True),
        lambda x: torch._foreach_norm([x, x[:2]]),  # what clipping calls
        lambda x: torch.add(x, 1, out=torch.empty(6, 8)),
    ],
)
def test_what_is_made_is_what_would_be_made(work: Work) -> None:
    """Shapes, strides, dtypes and bytes are those of the real operation, also when it is asked again."""
    expected = described(work(torch.ones(6, 8)))
    assert expected
    for _ in range(2):
        with Contentless():
            found = described(work(torch.empty(6, 8)))
        assert found == expected


def test_autograd_goes_on_and_takes_no_memory() -> None:
    """A step of training on a pebibyte of weights has its gradients; views share the storage."""
    with Contentless():
        weight = torch.nn.Parameter(torch.empty(HUGE, HUGE))
        optimizer = torch.optim.AdamW([weight], fused=True)
        functional.linear(torch.empty(2, HUGE), weight).sum().backward()
        assert weight.grad is not None
        assert weight.grad.shape == weight.shape
        optimizer.step()
        states = optimizer.state[weight]
        assert weight[1:].untyped_storage()._cdata == weight.untyped_storage()._cdata  # which one it is
    assert states["exp_avg"].untyped_storage().nbytes() == 4 * HUGE * HUGE


@pytest.mark.parametrize(
    "look", [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.nonzero, lambda x: bool((x > 0).all())]
)
def test_content_that_is_not_there_is_refused(look: Work) -> None:
    """While the mode is on, and afterwards by torch itself: nothing is made up."""
    with Contentless():
        tensor = torch.empty(1)
        with pytest.raises(Exception, match=r"\w"):  # each in torch's own way
            look(tensor)
    with pytest.raises(RuntimeError):
        tensor.tolist()


def test_what_is_known_stays_known_until_something_else_is_written() -> None:
    """What follows from known tensors and numbers has content; random numbers and writing take it away."""
    with Contentless() as mode:
        known = mode.know(torch.tensor([1.0, 2.0]))
        assert (known.view(2, 1) * 3 > 4).tolist() == [[False], [True]]
        known.add_(torch.tensor(1.0))
        assert known.tolist() == [2.0, 3.0]
        with pytest.raises(Exception, match=r"\w"):
            torch.bernoulli(known / 4).tolist()
        known.mul_(torch.empty(2))
        with pytest.raises(Exception, match=r"\w"):
            known.sum().item()
        with pytest.raises(Exception, match=r"\w"):
            (known + torch.empty(2)).sum().item()
