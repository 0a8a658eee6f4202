"""Which trial comes next: those that wait for room, and then what the study proposes.

A worker with room is filled before it trains on, so what waits is what fits nowhere yet. No trial waits for ever: once
others were preferred too often, a worker is drained for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorafront.search.packs import Need, Packs
    from lorafront.search.placement import Seat
    from lorafront.search.study import StudyLedger
    from lorafront.spaces.lora import LoraConfiguration

PATIENCE = 8  # times that others may begin before one that waits for room gets the next


@dataclass
class Waits:
    """A trial that waits for a place.

    Attributes:
        number: of the trial.
        need: of a worker.
        beside: trials that must have ended before.
        new: it was never begun.
        passed: how often others began instead.
    """

    number: int
    need: Need
    beside: frozenset[int] = frozenset()
    new: bool = False
    passed: int = 0


@dataclass
class Waiting:
    """Trials that wait for a place: new ones that found none, and those that are run again. Pure.

    One that ran out of memory waits until those that ran beside it have ended: a neighbour's peak may have been the
    reason. All others go before it.
    """

    _trials: list[Waits] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._trials)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._trials)

    @property
    def new(self) -> int:
        """How many wait that were never begun."""
        return sum(trial.new for trial in self._trials)

    def add(self, trial: Waits) -> None:
        """It waits from now on, behind those that do already."""
        self._trials.append(trial)

    def get(self, number: int) -> Waits | None:
        """One that waits; None where it does not."""
        return next((trial for trial in self._trials if trial.number == number), None)

    def has(self, keys: set[str]) -> bool:
        """Whether a new one waits that would be part of a pack over one of these bases."""
        return any(trial.new and not trial.need.alone and trial.need.key in keys for trial in self._trials)

    def passed(self, running: frozenset[int]) -> Waits | None:
        """Another one has begun: the first that was passed too often and need not wait for any of `running`."""
        for trial in self._trials:
            trial.passed += 1
        return next((trial for trial in self._free(running) if trial.passed >= PATIENCE), None)

    def pop(self, running: frozenset[int], keys: set[str], fits: Callable[[Waits], bool]) -> Waits | None:
        """The next one that fits and need not wait for any of `running`; None where there is none.

        Args:
            running: numbers of trials.
            keys: of the bases that the worker holds, which come first; of one without any, the key that most wait for.
            fits: whether it can begin there.
        """
        waiting = Counter(trial.need.key for trial in self._trials)
        free = sorted(
            self._free(running),
            key=lambda trial: (bool(trial.beside), trial.need.key not in keys if keys else -waiting[trial.need.key]),
        )
        found = next(filter(fits, free), None)
        if found is not None:
            self._trials.remove(found)
        return found

    def _free(self, running: frozenset[int]) -> list[Waits]:
        free = [trial for trial in self._trials if not trial.beside & running]
        return sorted(free, key=lambda trial: bool(trial.beside))


class TrialQueue:
    """Of one driver."""

    def __init__(
        self,
        ledger: StudyLedger,
        packs: Packs,
        need: Callable[[int, LoraConfiguration], Need],
        seat: Callable[[int, LoraConfiguration], Seat],
    ) -> None:
        """Nothing waits.

        Args:
            ledger: the study, which proposes.
            packs: who has room.
            need: what a trial takes of a worker.
            seat: the least that one needs that has a worker for itself.
        """
        self.exhausted = False  # the study has no more to propose
        self._ledger = ledger
        self._packs = packs
        self._need = need
        self._seat = seat
        self._waiting = Waiting()
        self._held: int | None = None  # the one that waited for too long
        self._drained: str | None = None  # the worker that empties for it; none where all have to
        self._overtaken = False  # a new trial has begun while others waited

    def wait(self, number: int, beside: frozenset[int] = frozenset(), *, new: bool = False) -> None:
        """A trial waits for room, and until none of `beside` runs."""
        need = self._need(number, self._ledger.configurations[number])
        self._waiting.add(Waits(number, need, beside, new))

    @property
    def dry(self) -> bool:
        """True where nothing is left to begin."""
        return not self._waiting and (self.exhausted or self._is_spent())

    def next_for(self, worker: str | None) -> Waits | None:
        """The next trial that has room in a worker, or with which a new worker (None) can begin."""
        if not self._packs.has_slot(worker):
            return None
        if self._held is not None and self._drained not in self._packs.workers:
            self._drained = self._emptiest(self._held)
        found = self._pop(worker, self._held) if self._held is not None else None
        if found is not None or (worker is not None and worker == self._drained):
            return found
        # The larger a pass is, the less of it a trial costs: those of another base come only where nothing else does.
        found = self._pop(worker, alike=True)
        if found is None and (self._held is None or self._drained is not None):
            found = self._ask(worker)
            self._overtaken = self._overtaken or found is not None
        return found or self._pop(worker)

    def turned(self) -> None:
        """A worker was filled. What waits was passed once more where a new trial began."""
        if self._overtaken and self._held is None:
            passed = self._waiting.passed(self._packs.running)
            self._held = passed.number if passed else None
        self._overtaken = False

    def _pop(self, worker: str | None, only: int | None = None, *, alike: bool = False) -> Waits | None:
        keys = self._packs.keys(worker)

        def fits(trial: Waits) -> bool:
            strange = alike and keys and trial.need.key not in keys
            return only in {None, trial.number} and not strange and self._fits(worker, trial)

        found = self._waiting.pop(self._packs.running, keys, fits)
        if found is not None and found.number == self._held:
            self._held = self._drained = None
        return found

    def _ask(self, worker: str | None) -> Waits | None:
        """A new trial with room there, over a base that the worker has, if it has any.

        Others that were proposed before it wait: as many as one worker may have.

        Where one of a kind waits that the worker has already, the worker is full.
        """
        keys = self._packs.keys(worker)
        while self._waiting.new < self._packs.limit and not self._waiting.has(keys):
            if self.exhausted or self._is_spent():
                return None
            asked = self._ledger.ask()
            self.exhausted = asked is None
            if asked is not None:
                trial = Waits(asked[0], self._need(*asked), new=True)
                if self._fits(worker, trial) and (not keys or trial.need.key in keys):
                    return trial
                self._waiting.add(trial)
        return None

    def _fits(self, worker: str | None, trial: Waits) -> bool:
        return self._packs.fits(worker, trial.need, lambda: self._seat_of(trial.number))

    def _seat_of(self, number: int) -> Seat:
        return self._seat(number, self._ledger.configurations[number])

    def _emptiest(self, number: int) -> str | None:
        """Of the workers that could have a trial if they had no other; None where none could."""
        trial = self._waiting.get(number)
        if trial is None:
            return None
        seat, workers = lambda: self._seat_of(number), self._packs.workers
        able = [who for who in workers if self._packs.could_have(who, trial.need, seat)]
        return min(able, key=lambda who: len(workers[who].members), default=None)

    def _is_spent(self) -> bool:
        begun = self._ledger.recorded + len(self._packs.running) + len(self._waiting)
        return begun >= self._ledger.search.budget.trials
