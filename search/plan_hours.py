"""How long the trials of a search train if every one runs to the end. An order of magnitude.

By the speed that an earlier search of the same model under the same root has measured, where there is one; else by
floating point operations at a stated speed. Early stopping needs less. Starting trials, loading the base, and waiting
for the launches of small kernels are in neither.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from lorafront.search.paths import RootPaths
from lorafront.search.prepared import Prepared
from lorafront.search.study_table import read_study
from lorafront.spaces.errors import StateUnreadable

MINUTE, HOUR = 60, 3600
TERA = 1e12


@dataclass(frozen=True)
class Hours:
    """An estimate.

    Attributes:
        trials: of the budget.
        tokens: that one trial trains on.
        hours: of all trials one after the other.
        basis: hours of what, and what they are computed from, for people.
    """

    trials: int
    tokens: int
    hours: float
    basis: str

    def __str__(self) -> str:
        each = self.hours * HOUR / self.trials
        time = f"{each:.2g} s" if each < MINUTE else f"{each / MINUTE:.0f} min"
        return (
            f"{self.trials} trials of {self.tokens:,} training tokens: about {self.hours:.2g} {self.basis}, {time} each"
        )


def estimate(prepared: Prepared, root: RootPaths, tflops: float) -> Hours:
    """For the whole budget.

    Args:
        prepared: the search.
        root: where earlier searches are.
        tflops: that a GPU sustains, in 10**12 operations per second.
    """
    trials = prepared.search.budget.trials
    train = prepared.tokens.train
    tokens = round(prepared.rungs[-1] * float(train.lengths.mean()))
    measured = _measured(prepared, root)
    if measured is not None:
        name, speed = measured
        basis = f"hours of a worker at the {speed:,.0f} tokens/s that {name} measured"
        return Hours(trials, tokens, trials * tokens / speed / HOUR, basis)
    operations = trials * _operations(prepared, tokens)
    return Hours(
        trials,
        tokens,
        operations / (tflops * TERA) / HOUR,
        f"GPU-hours of arithmetic at {tflops:g} TFLOP/s (--tflops)",
    )


def _operations(prepared: Prepared, tokens: int) -> float:
    """Floating point operations of a trial.

    A product with a weight costs 2 operations per element and token forward, and 2 backward to its input; the frozen
    weight takes no gradient. Gradient checkpointing repeats the forward pass. The adapters and the products within
    attention are left out: a few percent at usual ranks and lengths.
    """
    weights = sum(inputs * outputs for inputs, outputs in prepared.facts.linears.values())
    each = 6 if prepared.search.training.gradient_checkpointing else 4
    evaluated = len(prepared.rungs) * int(prepared.tokens.evaluation.offsets[-1])  # early rungs see less of it
    return float(weights) * (each * tokens + 2 * evaluated)


def _measured(prepared: Prepared, root: RootPaths) -> tuple[str, float] | None:
    """(search, median training tokens per second) of the newest earlier search that trains as this one does."""
    search = prepared.search
    for name in reversed(root.names()):
        try:
            table = read_study(root.search(name).study_db)
        except StateUnreadable:  # said in full by `status`
            continue
        other = table.search
        if (other.model, other.task, other.training.gradient_checkpointing) != (
            search.model, search.task, search.training.gradient_checkpointing
        ):  # fmt: skip
            continue
        speeds = [speed for trial in table.complete if (speed := trial.measurements.get("tokens_per_second"))]
        if speeds:
            return name, statistics.median(speeds)
    return None
