"""Matrix products of 16-bit tensors on processors without instructions for them.

There torch 2.13 computes in a plain loop: on one core of an AVX2 processor 1 to 5 billion operations a second in
bfloat16, where float32 reaches 30 to 80.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch

PRODUCTS = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "addmm_",
    "baddbmm_",
)  # what a linear layer, an attention and their gradients come down to


@functools.cache
def widen_slow_products() -> torch.library.Library | None:
    """From now on, this process computes 16-bit products that its processor has no instructions for through float32.

    Returns:
        What keeps it so; None where the processor has them.
    """
    slow = {dtype for dtype, fast in _instructions().items() if not fast}
    return widened_products(slow) if slow else None


def widened_products(dtypes: Collection[torch.dtype]) -> torch.library.Library:
    """While what is returned lives, products of these dtypes on a CPU are computed through float32.

    Sums are in float32 and rounded once, which is what instructions for 16 bits do too. The copies in float32 live as
    long as one product, and no count of tensors sees them, like the scratch space of any other kernel.
    """
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that a kernel is replaced
        for name in PRODUCTS:
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            widened = _widened(kernel, dtypes, in_place=name.endswith("_"))
            library.impl(name, widened, "CPU", with_keyset=True)  # type: ignore[no-untyped-call]
    return library


def _instructions() -> dict[torch.dtype, bool]:
    """Whether torch's products have instructions for a dtype here."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return {torch.bfloat16: False, torch.float16: False}
    return {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),  # noqa: SLF001  # torch names no public one
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),  # noqa: SLF001
    }


def _widened(kernel: Any, dtypes: Collection[torch.dtype], *, in_place: bool) -> Callable[..., torch.Tensor]:
    def product(keys: Any, first: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        dtype = first.dtype
        if dtype not in dtypes:
            same: torch.Tensor = kernel.call_boxed(keys, first, *others, **options)
            return same
        wide = (x.float() if isinstance(x, torch.Tensor) else x for x in others)
        found: torch.Tensor = kernel.call_boxed(keys, first.float(), *wide, **options)
        return first.copy_(found) if in_place else found.to(dtype)

    return product
