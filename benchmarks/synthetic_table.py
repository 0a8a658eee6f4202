"""A table of made-up learning curves, for tests and for work on a sampler while no real table is there.

The shapes are those of LoRA trainings: power laws in rows, a best learning rate that falls with alpha / rank and with
the number of modules, gains from rank that flatten, and a part of the noise that all trials of a seed share.
"""

from __future__ import annotations

import math

import numpy as np
from trial_table import Floats, TrialTable, grid

from lorafront.search.search_file import SearchFile, parse_search
from lorafront.spaces.lora import LoraConfiguration

MODULES = {"query": 1.0, "query+value": 2.0, "attention": 4.0, "attention+mlp": 13.0}  # relative adapter size
BASES_GIB = {"nf4": 0.55, "int8": 1.0, "bf16": 2.0}
LOST_NATS = {"nf4": 0.045, "int8": 0.012, "bf16": 0.0}
SPACE = {
    "rank": [4, 8, 16, 32, 64],
    "alpha": {"ratio": [1, 2]},
    "modules": list(MODULES),
    "quantization": list(BASES_GIB),
    "dropout": 0.0,
    "bias": "none",
    "learning_rate": [2e-3, 6e-3, 2e-2],
}
RUNGS = (32, 64, 128, 256)
SEEDS = (0, 1)
SHARED_NOISE, OWN_NOISE = 0.01, 0.004  # nats, standard deviations


def synthetic_search() -> SearchFile:
    """The search file that would make such a table."""
    return parse_search(
        {
            "name": "synthetic",
            "model": "synthetic",
            "data": {"path": "synthetic"},
            "space": SPACE,
            "training": {"rows": RUNGS[-1], "rungs": len(RUNGS), "batch_size": 4},
        }
    )


def synthetic_table(seed: int = 0) -> TrialTable:
    """A table of 360 configurations, 2 seeds and 4 rungs; `seed` draws the curves."""
    search = synthetic_search()
    configurations = tuple(grid(search))
    random = np.random.default_rng(seed)
    quirks = random.normal(0, 1, len(configurations))
    curves = np.stack([_curve(lora, float(quirk)) for lora, quirk in zip(configurations, quirks, strict=True)])
    shape = (len(configurations), len(SEEDS), len(RUNGS))
    noise = random.normal(0, SHARED_NOISE, (1, *shape[1:])) + random.normal(0, OWN_NOISE, shape)
    sizes = np.array([lora.rank * MODULES[lora.modules] for lora in configurations])
    bases = np.array([BASES_GIB[lora.quantization] for lora in configurations])
    stretches = np.diff((0, *RUNGS)).astype(float)
    slowness = (1 + 0.004 * sizes**0.5) * np.array(
        [{"nf4": 1.2, "int8": 1.3}.get(c.quantization, 1.0) for c in configurations]
    )
    return TrialTable(
        search=search,
        rungs=RUNGS,
        seeds=SEEDS,
        configurations=configurations,
        eval_loss=curves[:, None, :] + noise,
        peak_vram_gb=bases + 0.0011 * sizes,
        trainable_params=sizes * 1024,
        adapter_mb=sizes * 1024 * 4 / 1e6,
        setup_seconds=np.full(len(configurations), 0.3),
        train_seconds=0.012 * stretches[None, :] * slowness[:, None],
        eval_seconds=np.repeat(0.2 * slowness[:, None], len(RUNGS), axis=1),
        provenance={"made by": "synthetic_table.py", "seed": seed},
    )


def _curve(lora: LoraConfiguration, quirk: float) -> Floats:
    """[R], nats per token at each rung, without noise."""
    size = MODULES[lora.modules]
    capacity = 0.5 / (lora.rank**0.5 * size**0.35)
    best = math.log10(6e-3) - 0.4 * math.log10(size / 4) - 0.3 * math.log10(lora.alpha / lora.rank / 2)
    off = math.log10(lora.learning_rate) - best
    floor = 3.3 + 0.25 * capacity + LOST_NATS[lora.quantization] + 0.18 * off * off + 0.004 * quirk
    speed = 0.35 + 0.04 * min(off, 0.5)  # a high learning rate is ahead early on
    curve: Floats = floor + 1.6 * np.array(RUNGS, dtype=np.float64) ** -speed
    return curve
