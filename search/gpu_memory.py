"""Sizes of GPU memory: what every process takes of it, and the tiers by which people speak of it."""

from __future__ import annotations

from lorafront.spaces.sizes import GIB, MIB

CONTEXT = 768 * MIB  # CUDA's context, kernels and fragmentation, until a trial has measured them; not measured here
# By which guides and the presets group configurations; what needs more is over the last.
TIERS = {"under 6 GB": 6 * GIB, "6-8 GB": 8 * GIB, "8-12 GB": 12 * GIB, "12-16 GB": 16 * GIB}
OVER = "over 16 GB"
