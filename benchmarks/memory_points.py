"""Points of `memory_gpu.py`: which models and configurations are measured, and how predictions of them compare.

Nothing here measures. Relative errors are (predicted - measured) / measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.config import Optimizer, TrainingConfig
from lorafront.trainables.memory_model import Shapes
from lorafront.trainables.shipped_architectures import SHIPPED

MIB = 2**20
OUT_OF_MEMORY = "out of memory"

MEASURED = ("qwen2.5-0.5b", "llama-3.2-1b", "phi-2", "qwen2.5-7b", "llama-3.1-8b")
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 512,
}
# The first is a Llama of GPT-2's size.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-0.1b": (
        "llama",
        {
            "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
            "vocab_size": 32000, "tie_word_embeddings": True,
        },
    ),
    **{name: SHIPPED[name] for name in MEASURED},
    "tiny-llama": ("llama", SMALL),
    "tiny-phi": ("phi", SMALL),
}  # fmt: skip
TINY = tuple(name for name in MODELS if name.startswith("tiny"))


@dataclass(frozen=True)
class Point:
    """One configuration, and what came of it.

    Attributes:
        model: name in `MODELS`.
        quantization: how the base is stored.
        rank: of the adapter.
        modules: group of modules that are adapted.
        batch: rows.
        length: tokens of the longest row.
        checkpointing: of gradients.
        padded: the other rows are one token shorter.
        optimizer: which.
        dropout: of the adapter.
        allocated: bytes at the peak; None where it was not measured.
        reserved: bytes that the allocator held at most.
        process: bytes that the process held by NVML, or `reserved` where that does not say.
        seconds: for attaching, two steps, and detaching.
        error: why nothing was measured; empty otherwise.
        predicted: bytes at the peak; None where that was not possible.
    """

    model: str
    quantization: str
    rank: int = 32
    modules: str = "all-linear"
    batch: int = 4
    length: int = 512
    checkpointing: bool = False
    padded: bool = False
    optimizer: Optimizer = "adamw"
    dropout: float = 0.0
    allocated: int | None = None
    reserved: int | None = None
    process: int | None = None
    seconds: float | None = None
    error: str = ""
    predicted: int | None = None

    @property
    def base(self) -> tuple[str, str]:
        """Points with the same one share frozen weights."""
        return self.model, self.quantization

    @property
    def name(self) -> str:
        """For people."""
        switches = [
            *(["checkpointing"] if self.checkpointing else []),
            *(["padded"] if self.padded else []),
            *([self.optimizer] if self.optimizer != "adamw" else []),
            *([f"dropout {self.dropout}"] if self.dropout else []),
        ]
        shape = f"r{self.rank} {self.modules} {self.batch}x{self.length}"
        return " ".join([self.model, self.quantization, shape, *switches])

    @property
    def relative_error(self) -> float | None:
        """(predicted - measured) / measured; below zero a trial needs more than was said."""
        if not self.allocated or not self.predicted:
            return None
        return (self.predicted - self.allocated) / self.allocated

    @property
    def shapes(self) -> Shapes:
        """Of its batch."""
        return Shapes(self.batch, self.length, padded=self.padded)

    @property
    def lora(self) -> LoraConfiguration:
        """Its configuration."""
        return LoraConfiguration(
            rank=self.rank, alpha=2.0 * self.rank, modules=self.modules, quantization=self.quantization,
            dropout=self.dropout, bias="none", learning_rate=1e-4, batch_size=self.batch, gradient_accumulation=1,
            weight_decay=0.0, warmup=0.0, scheduler="constant",
        )  # fmt: skip

    @property
    def training(self) -> TrainingConfig:
        """As many rows as the batch has."""
        return TrainingConfig(rows=self.batch, gradient_checkpointing=self.checkpointing, optimizer=self.optimizer)


def grid(model: str, quantization: str, lengths: tuple[int, int], *, paged: bool) -> list[Point]:
    """Points on one base, those first that say most.

    Args:
        model: name in `MODELS`.
        quantization: how it is stored.
        lengths: short and long rows, in tokens.
        paged: one more with the paged optimizer.
    """
    short, long = lengths
    usual = Point(model, quantization, length=short)
    ranks = [replace(usual, rank=rank) for rank in (8, 128, 32, 64)]
    light = replace(usual, checkpointing=True)
    return [
        *ranks,
        light,
        replace(light, length=long),
        *(replace(point, modules="query+value") for point in ranks),
        replace(usual, batch=1),
        replace(light, batch=1, length=long),
        replace(usual, padded=True),
        replace(usual, batch=1, length=long),
        replace(usual, dropout=0.05),
        replace(usual, length=long),
        replace(light, batch=1),
        replace(light, padded=True, modules="query+value"),
        *([replace(usual, rank=128, optimizer="paged_adamw_8bit")] if paged else []),
    ]


def compare(points: list[Point]) -> dict[str, Any]:
    """How far predictions are from measurements: of totals, and of steps from one rank to the next."""
    both = [point for point in points if point.relative_error is not None]
    by_base: dict[tuple[str, str], list[Point]] = {}
    for point in both:
        by_base.setdefault(point.base, []).append(point)
    return {
        **_errors(both),
        "out_of_memory": sum(point.error == OUT_OF_MEMORY for point in points),
        "relative_error_of_rank_increments": _spread(list(_steps(both))),
        "bases": {
            "/".join(base): {
                **_errors(same),
                "kendall_tau": kendall([(point.allocated or 0, point.predicted or 0) for point in same]),
            }
            for base, same in by_base.items()
        },
    }


def _errors(points: list[Point]) -> dict[str, Any]:
    errors = [error for point in points if (error := point.relative_error) is not None]
    return {
        "points": len(points),
        "relative_error": _spread(errors),
        "worst_under_prediction": round(min([0.0, *errors]), 5),
        "beside_allocated_mib": _beside(points),
    }


def _steps(points: list[Point]) -> Iterator[float]:
    """Relative errors of the bytes between neighbouring ranks of what is otherwise the same."""
    ladders: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.rank):
        ladders.setdefault(replace(point, rank=0).name, []).append(point)
    for ladder in ladders.values():
        for low, high in pairwise(ladder):
            grown = (high.allocated or 0) - (low.allocated or 0)
            if grown > 0:
                yield ((high.predicted or 0) - (low.predicted or 0) - grown) / grown


def _spread(errors: list[float]) -> dict[str, float] | None:
    """Median and 95th percentile of the absolute values, by the nearest rank."""
    if not errors:
        return None
    sizes = sorted(map(abs, errors))
    return {"median": round(statistics.median(sizes), 5), "p95": round(sizes[-(-95 * len(sizes) // 100) - 1], 5)}


def _beside(points: list[Point]) -> dict[str, int] | None:
    """What a process holds beside what is allocated: fragmentation (reserved) and context (the rest), in MiB."""
    beside = [(point.process or 0) - (point.allocated or 0) for point in points]
    reserved = [(point.reserved or 0) - (point.allocated or 0) for point in points]
    if not beside:
        return None
    return {
        "median": round(statistics.median(beside) / MIB),
        "max": round(max(beside) / MIB),
        "reserved_median": round(statistics.median(reserved) / MIB),
        "reserved_max": round(max(reserved) / MIB),
    }


def kendall(pairs: list[tuple[int, int]]) -> float | None:
    """Tau-a of (measured, predicted): 1 where every two points are in the same order; a tie counts as neither."""
    if len(pairs) < 2:  # noqa: PLR2004  # two make a pair
        return None
    signs = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in combinations(pairs, 2)]
    return round(sum((sign > 0) - (sign < 0) for sign in signs) / len(signs), 4)


def table(summary: dict[str, Any]) -> str:
    """At most 80 columns."""

    def row(name: str, of: dict[str, Any], tau: object = "") -> str:
        error, beside = of["relative_error"], of["beside_allocated_mib"]
        return (
            f"{name:<24}{of['points']:>6}{error['median']:>9.2%}{error['p95']:>9.2%}"
            f"{of['worst_under_prediction']:>9.2%}{tau!s:>8}{beside['median']:>7}{beside['max']:>7}"
        )

    if not summary["points"]:
        return "no point was measured"
    head = f"{'base':<24}{'points':>6}{'median':>9}{'p95':>9}{'under':>9}{'tau':>8}{'beside, MiB':>14}"
    lines = [head, *(row(name, of, of["kendall_tau"]) for name, of in summary["bases"].items()), row("all", summary)]
    steps = summary["relative_error_of_rank_increments"]
    if steps is not None:
        lines.append(f"from rank to rank: median {steps['median']:.2%}, p95 {steps['p95']:.2%}")
    lines.append(f"out of memory: {summary['out_of_memory']}; beside: median and most, process minus allocated")
    return "\n".join(lines)
