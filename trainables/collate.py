"""Rows of unequal length as one rectangle, filled up on the right.

Shape legend: b rows, t tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def pad_rows(rows: Sequence[np.ndarray], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(int64[b, t] tokens, int64[b, t] mask that is 1 where a row has a token)."""
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), fill, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.from_numpy(row.astype("int64"))
        mask[i, : len(row)] = 1
    return tokens, mask
