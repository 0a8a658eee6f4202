"""Products of the frozen base for many slots are those that each slot would get alone."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt

from lorafront.trainables.packed_base import BaseLinear


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("outlier", [0.0, 5.9999, 6.0, 50.0])
def test_an_8_bit_product_depends_on_no_other_slot(outlier: float, keep: bool) -> None:
    """Also where one of them has values that bitsandbytes treats apart: it takes their columns out for all rows."""
    torch.manual_seed(0)
    module = Linear8bitLt(32, 16, bias=True, has_fp16_weights=False, threshold=6.0).requires_grad_(requires_grad=False)
    module = module.to("cpu").eval()
    x = torch.randn(3, 4, 32).clamp(-4, 4).bfloat16()
    alone = BaseLinear("linear", module, torch.bfloat16, keep=keep)
    expected = torch.cat([module(part) for part in x.chunk(3)])
    assert torch.equal(alone.product(x, 3, training=False), expected)
    if outlier:
        x[1, 2, 5] = outlier
    others = torch.cat([module(part) for part in x.chunk(3)])
    found = alone.product(x, 3, training=False)
    assert torch.equal(found, others)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert outlier < 6 or not torch.equal(module(x), found)  # in one call it would not be so
