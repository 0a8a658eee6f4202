"""What a search can optimise and limit: names, directions, units, and limits such as `<= 12`.

The values come from a trial's measurements under the same names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Objective:
    """One axis of the front."""

    name: str
    label: str
    unit: str
    direction: Direction
    meaning: str
    quality: bool = False  # of what the model learnt; the rest is cost
    alone: bool = False  # only honest where a trial has its device for itself


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective(
            "perplexity",
            "perplexity",
            "",
            "minimize",
            "exp(sum of token NLL / number of tokens) over the whole evaluation split, prompt tokens excluded",
            quality=True,
        ),
        Objective(
            "accuracy", "accuracy", "", "maximize", "share of evaluation rows whose label is predicted", quality=True
        ),
        Objective(
            "f1", "macro F1", "", "maximize", "F1 averaged over the labels, each counting the same", quality=True
        ),
        Objective(
            "peak_vram_gb",
            "peak VRAM",
            "GiB",
            "minimize",
            "memory allocated at the peak of a training step on the largest batch of the data; on a machine without a "
            "GPU the same count of live tensor storages",
        ),
        Objective(
            "train_seconds",
            "training time",
            "s",
            "minimize",
            "seconds in optimizer steps, evaluation excluded",
            alone=True,
        ),
        Objective(
            "tokens_per_second",
            "training speed",
            "tokens/s",
            "maximize",
            "tokens in optimizer steps, padding excluded, / train_seconds",
            alone=True,
        ),
        Objective("trainable_params", "trainable parameters", "", "minimize", "number of parameters that are trained"),
        Objective("adapter_mb", "adapter size", "MB", "minimize", "bytes of the adapter's weights / 10**6"),
    )
}


def second_set_loss(name: str) -> Objective:
    """The loss on the evaluation set that a file calls `name` in `also_evaluate`."""
    meaning = (
        f"mean NLL per target in nats on the second evaluation set {name!r}: what adapting to the first one forgets"
    )
    return Objective(f"eval_{name}_loss", f"loss on {name}", "nats", "minimize", meaning, quality=True)


@dataclass(frozen=True)
class Limit:
    """A bound on one measurement, `value <= bound` or `value >= bound`."""

    name: str
    operator: Literal["<=", ">="]
    bound: float

    def holds(self, value: object) -> bool:
        """True where the measured `value` is inside the bound; one that is no finite number never is."""
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return value <= self.bound if self.operator == "<=" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {self.bound:g}"


_LIMIT = re.compile(r"^\s*(<=|>=)\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*$")


def parse_limit(name: str, text: object) -> Limit:
    """Read `<= 12` or `>= 0.5`.

    Raises:
        ValueError: the text is not of that form; the message says what is.
    """
    found = _LIMIT.match(text) if isinstance(text, str) else None
    if found is None or not math.isfinite(float(found[2])):
        raise ValueError(f'must be a comparison with a number such as "<= 12" (got {text!r})')
    operator: Literal["<=", ">="] = "<=" if found[1] == "<=" else ">="
    return Limit(name, operator, float(found[2]))


def feasible(limits: tuple[Limit, ...], measured: Mapping[str, object]) -> bool:
    """True where every limit holds on the measurements."""
    return all(limit.holds(measured.get(limit.name)) for limit in limits)


def minimized(measurements: Mapping[str, object], objectives: Sequence[Objective]) -> list[float]:
    """The objectives that were measured, negative where more is better; what is no number is left out."""
    return [
        -float(value) if objective.direction == "maximize" else float(value)
        for objective in objectives
        if isinstance(value := measurements.get(objective.name), (int, float))
    ]


def broken_limit(limits: tuple[Limit, ...], known: Mapping[str, object]) -> str:
    """The first limit that the measurements known so far break, with the value; empty where they break none."""
    for limit in limits:
        value = known.get(limit.name)
        if isinstance(value, (int, float)) and not limit.holds(value):
            return f"{limit.name} {value:g} breaks {limit}"
    return ""
