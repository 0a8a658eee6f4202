"""Which trials are run again after their worker was lost or ran out of memory, how often, and when.

A trial is told only when nothing is left to try; until then it keeps its number, its folder and its place in the
budget. How often each was tried stands in the study, so that a new driver goes on counting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lorafront.search.study import StudyLedger
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.outcome import OUT_OF_MEMORY, Outcome

WORKER_LOSSES = 2
# Attempts after the first one, of lost workers from each rung; what is not here is told at once.
ALLOWED = {Outcome.INFRA_LOST: WORKER_LOSSES, Outcome.TIMEOUT: WORKER_LOSSES, Outcome.CUDA_OOM: 1, Outcome.HOST_OOM: 1}


def kind(outcome: Outcome, rows: int) -> str:
    """How an end is counted: out of memory once and for all, a lost worker from each rung anew.

    A trial that comes forward between two losses is not their reason, and a long one meets many.
    """
    return outcome.stored if outcome in OUT_OF_MEMORY else f"{outcome.stored}@{rows}"


def allowed(ledger: StudyLedger, number: int, outcome: Outcome, rows: int) -> bool:
    """True where a trial that ended so after so many rows may be run again; `StudyLedger.count_end` says that it is."""
    return outcome in ALLOWED and ledger.ends(number).get(kind(outcome, rows), 0) < ALLOWED[outcome]


def ran_out(ledger: StudyLedger, number: int) -> bool:
    """True where an earlier attempt ran out of memory: the next one gets more room."""
    return any(outcome.stored in ledger.ends(number) for outcome in OUT_OF_MEMORY)


@dataclass
class Waiting:
    """Trials to run again. Pure.

    One whose worker was lost is next. One that ran out of memory waits until those that ran beside it have ended: a
    neighbour's peak may have been the reason.
    """

    _next: list[tuple[int, LoraConfiguration]] = field(default_factory=list)
    _later: list[tuple[int, LoraConfiguration, frozenset[int]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._next or self._later)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._next) + len(self._later)

    def add(self, number: int, lora: LoraConfiguration, beside: frozenset[int] = frozenset()) -> None:
        """Run it again, once none of `beside` runs any more."""
        if beside:
            self._later.append((number, lora, beside))
        else:
            self._next.append((number, lora))

    def oldest(self, running: frozenset[int]) -> int | None:
        """The one that has waited the longest and need not wait for any of `running`; None where there is none."""
        free = [number for number, _ in self._next]
        return next(iter([*free, *(number for number, _, beside in self._later if not beside & running)]), None)

    def pop(
        self, running: frozenset[int], skip: Callable[[int], bool] | None = None
    ) -> tuple[int, LoraConfiguration] | None:
        """The next one that need not wait for any of `running`, and is not to be skipped; None where there is none."""
        for trial in self._next:
            if skip is None or not skip(trial[0]):
                self._next.remove(trial)
                return trial
        for index, (number, lora, beside) in enumerate(self._later):
            if not beside & running and (skip is None or not skip(number)):
                del self._later[index]
                return number, lora
        return None
