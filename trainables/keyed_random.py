"""Random bits that depend on nothing but a key and a place: dropout masks that no slot and no neighbour changes.

Each 32-bit word is the place, mixed with the key by a finalizer of two multiplications (Wellons, "hash prospector",
`lowbias32`); its halves are two 16-bit numbers, so a probability is met to 1/65536. Integers only: a CPU and a GPU draw
the same. Forward and backward draw the same mask again instead of keeping it.

Shape legend: k slots, n places that count on from each other (row and token), w features of one place.
"""

from __future__ import annotations

import hashlib

import torch

_STEP = -1640531527  # odd, near 2**32 / golden ratio: neighbours start far apart
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97
_HALF = 1 << 15


def word(text: str) -> int:
    """A signed 32-bit number for a name."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little", signed=True)


def site_keys(seeds_k: torch.Tensor, moments_k: torch.Tensor, sites_s: torch.Tensor) -> torch.Tensor:
    """int32[k, s]: a key for each slot and each site of the model.

    Args:
        seeds_k: int32[k], of the trials.
        moments_k: int32[k], which pass of the trial it is.
        sites_s: int32[s], a number for each place in the model where something is dropped.
    """
    return _mix(_mix(_mix(seeds_k) + moments_k)[:, None] ^ sites_s)


def threshold(dropout: float) -> int:
    """What a drawn 16-bit number must reach to be kept, with that probability, below 1, of being dropped."""
    return min(_HALF - 1, round(dropout * 2 * _HALF) - _HALF)


def keep(keys_k: torch.Tensor, limits: torch.Tensor | int, places_n: torch.Tensor, width: int) -> torch.Tensor:
    """bool[k, n, w]: True where a value is kept.

    Args:
        keys_k: int32[k].
        limits: `threshold` of all, or int16[k, 1, 1] of each.
        places_n: int32[n]; the same place draws the same whatever else there is.
        width: w.
    """
    words = (width + 1) // 2
    counter_nw = places_n[:, None] * words + torch.arange(words, dtype=torch.int32, device=places_n.device)
    drawn_knw = _mix(counter_nw * _STEP + keys_k[:, None, None]).view(torch.int16)
    return (drawn_knw >= limits)[..., :width]


def _mix(h: torch.Tensor) -> torch.Tensor:
    """Every bit depends on every bit; in a tensor of its own. Shifts are logical, which int32 has not."""
    h = h ^ ((h >> 16) & 0xFFFF)
    h *= _FIRST
    h ^= (h >> 15) & 0x1FFFF
    h *= _SECOND
    h ^= (h >> 15) & 0x1FFFF
    return h
