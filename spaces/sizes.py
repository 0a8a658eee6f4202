"""Sizes of memory as people write them."""

from __future__ import annotations

import re

MIB, GIB = 2**20, 2**30
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(gi?b?|mi?b?)?\s*", re.IGNORECASE)


def parse_size(text: object) -> int:
    """Bytes of `8GB`, `500MB`, or `8`: GB and MB are 2**30 and 2**20 bytes, as vendors of GPUs use them.

    Raises:
        ValueError: it is no size; the message says what is.
    """
    found = _SIZE.fullmatch(str(text))
    size = int(float(found[1]) * (MIB if (found[2] or "g")[0].lower() == "m" else GIB)) if found else 0
    if not size:
        raise ValueError(f"must be a size such as 8GB or 500MB (got {text!r})")
    return size


def size_text(size: float) -> str:
    """`7.4 GiB`, below one `740 MiB`."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
