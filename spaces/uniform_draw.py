"""Uniform draws from a space without a sampler: for what a sampler no longer finds by itself."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from lorafront.spaces.parameters import stepped


class UniformDraw:
    """Implements `Suggests`; the same generator state draws the same."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Each choice alike."""
        self.params[name] = self._generator.choice(choices)
        return self.params[name]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Each integer alike; in the logarithm, each as the stretch that rounds to it."""
        if log:
            drawn = math.exp(self._generator.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            self.params[name] = min(high, max(low, round(drawn)))
        else:
            self.params[name] = self._generator.randrange(low, high + 1, step)
        return int(self.params[name])

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Any number alike, or any of those that steps reach."""
        if step is not None:
            drawn = stepped(low, self._generator.randint(0, round((high - low) / step)), step)
        elif log:
            drawn = math.exp(self._generator.uniform(math.log(low), math.log(high)))
        else:
            drawn = self._generator.uniform(low, high)
        self.params[name] = min(high, max(low, drawn))
        return float(self.params[name])
