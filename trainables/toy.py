"""A session and an engine without torch and with a known optimum: for tests, documentation and runs at scale.

Perplexity falls towards a floor that depends on rank and learning rate, memory is a formula, so the true front of any
space can be written down. Deterministic in (configuration, seed, rows).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.data import seeded_generator
from lorafront.trainables.session import Measurements, Session, never

if TYPE_CHECKING:
    from lorafront.trainables.config import TrialConfig

BITS = {"nf4": 4.5, "nf4_double": 4.1, "fp4": 4.5, "int8": 8.0, "bf16": 16.0, "fp16": 16.0, "fp32": 32.0}
BEST_LEARNING_RATE = 2e-4


def toy_memory_gib(lora: LoraConfiguration) -> float:
    """Peak memory of the toy, GiB: base by its bits, adapter by its rank."""
    return BITS[lora.quantization] / 8 + 0.01 * lora.rank * (1 + lora.modules.count("+"))


def toy_floor(lora: LoraConfiguration) -> float:
    """Perplexity after infinitely many rows."""
    off = math.log10(lora.learning_rate / BEST_LEARNING_RATE)
    lost = {"nf4": 0.3, "nf4_double": 0.35, "fp4": 0.5, "int8": 0.1}.get(lora.quantization, 0.0)
    return 8 + 4 / math.sqrt(lora.rank) + 3 * off * off + lost + 2 * abs(lora.dropout - 0.05)


@dataclass(eq=False)
class ToySession:
    """Implements `Session` in microseconds; `step_seconds` makes each optimizer step as long."""

    lora: LoraConfiguration
    seed: int = 0
    rows_seen: int = 0
    step_seconds: float = 0.0

    def train(self, rows: int, interrupted: Callable[[], bool] = never) -> None:
        """Move on to `rows`, a batch at a time."""
        while self.rows_seen < rows and not interrupted():
            self.step(rows)
            if self.step_seconds:
                time.sleep(self.step_seconds)

    def step(self, rows: int) -> None:
        """One optimizer step, which ends at `rows`."""
        self.rows_seen = min(rows, self.rows_seen + self.lora.batch_size * self.lora.gradient_accumulation)

    def evaluate(self) -> dict[str, Any]:
        """A power law in rows, with one part in a thousand of noise."""
        noise = float(seeded_generator(self.seed, self.lora.fingerprint).normal())
        value = toy_floor(self.lora) + 40 / math.sqrt(self.rows_seen + 1) + 0.001 * noise
        measured = Measurements(
            peak_vram_gb=toy_memory_gib(self.lora),
            peak_vram_source="toy",
            trainable_params=self.lora.rank * 1000,
            adapter_mb=self.lora.rank * 0.004,
            train_seconds=self.rows_seen * 1e-3,
        )
        return {**measured, "perplexity": value, "eval_loss": math.log(value)}

    def save(self, folder: Path) -> None:
        """One small file."""
        (folder / "toy.json").write_text(json.dumps({"rows": self.rows_seen}), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """See `save`."""
        self.rows_seen = json.loads((folder / "toy.json").read_text(encoding="utf-8"))["rows"]

    def close(self) -> None:
        """Nothing is borrowed."""


@dataclass(eq=False)
class ToyEngine:
    """Implements `Engine`: its sessions take each optimizer step together, which lasts `step_seconds` for all."""

    step_seconds: float = 0.0

    def open(self, config: TrialConfig) -> ToySession:
        """There is always a free slot."""
        return ToySession(config.lora, config.seed)

    def train(self, goals: Mapping[Session, int], interrupted: Callable[[], bool] = never) -> None:
        """A step each, again and again."""
        while all(session.rows_seen < rows for session, rows in goals.items()) and not interrupted():
            for session, rows in goals.items():
                cast("ToySession", session).step(rows)
            if self.step_seconds:
                time.sleep(self.step_seconds)

    def evaluate(self, sessions: Sequence[Session]) -> None:
        """Nothing is shared: an evaluation is a formula."""

    def close(self) -> None:
        """Nothing is borrowed."""
