"""Sizes as people write them."""

from __future__ import annotations

import pytest

from lorafront.spaces.sizes import GIB, MIB, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * GIB), ("8", 8 * GIB), (" 1.5 gib ", 3 * GIB // 2), ("500MB", 500 * MIB), (24, 24 * GIB)],
)  # fmt: skip
def test_sizes_are_read(text: object, size: int) -> None:
    """GB and GiB mean the same here, as they do where GPUs are sold."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "8TB", "-8GB", "0GB", "8 GB of it", None])
def test_what_is_no_size_is_refused(text: object) -> None:
    """With an example of what is."""
    with pytest.raises(ValueError, match="such as 8GB or 500MB"):
        parse_size(text)


def test_sizes_are_shown_in_the_unit_that_suits() -> None:
    """Small ones in MiB."""
    assert (size_text(7.4 * GIB), size_text(512 * MIB)) == ("7.40 GiB", "512.0 MiB")
