"""Several trials in one process: they train together, and report as soon as one of them has something to say.

Trials that share an engine take their steps together, and several engines take turns. What one trial does wrong is its
own outcome; running out of memory sends the youngest elsewhere; any other error of a shared pass is nobody's, and ends
the process, which costs each trial the way back to its last checkpoint.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from lorafront.trainables import heartbeat
from lorafront.trainables.fault_points import reached
from lorafront.trainables.outcome import OUT_OF_MEMORY, classify
from lorafront.trainables.session import never

if TYPE_CHECKING:
    from lorafront.trainables.config import TrialConfig
    from lorafront.trainables.session import Engine, Session
    from lorafront.trainables.trial import Report, Trial


class Pack:
    """The trials of one process, by number, over as many engines as they need."""

    def __init__(self, broken: Callable[[], object] = gc.collect) -> None:
        """Nobody is here.

        Args:
            broken: told that an engine was given up, so that whatever it was made of is not used again.
        """
        self._broken = broken
        self._trials: dict[int, Trial] = {}  # in the order in which they came
        self._engines: dict[Hashable, Engine] = {}  # the one whose turn is next stands first
        self._keys: dict[Session, Hashable] = {}

    def __len__(self) -> int:
        """How many trials are here."""
        return len(self._trials)

    def join(self, number: int, trial: Trial) -> None:
        """Take a trial up. Its sessions come from `open`."""
        self._trials[number] = trial

    def leave(self, number: int) -> None:
        """Let a trial go as it stands; nothing where it has left by itself."""
        trial = self._trials.pop(number, None)
        if trial is not None:
            trial.close()
            self._sweep(failed=False)

    def open(self, key: Hashable, make: Callable[[], Engine], config: TrialConfig) -> Session:
        """A session on the engine of that key, which is made if it is not here.

        A new one takes the place of those that nobody uses: there may be no memory for both.

        Args:
            key: what sessions must have in common to share an engine.
            make: an engine.
            config: of the trial.
        """
        if key not in self._engines:
            for idle in self._idle():
                self._engines.pop(idle).close()
            self._engines[key] = make()
        session = self._engines[key].open(config)
        self._keys[session] = key
        return session

    def next_reports(self) -> dict[int, Report]:
        """Train until one trial or more have something to report; those that have ended or paused have left then."""
        reports: dict[int, Report] = {}
        for number, trial in list(self._trials.items()):
            report = trial.begin()
            if report is not None:
                self._say(number, report, reports)
        while self._trials and not reports:
            self._event(reports)
        return reports

    def close(self) -> None:
        """Let all go, and give back what the engines have borrowed."""
        for number in list(self._trials):
            self.leave(number)
        for key in self._idle():
            self._engines.pop(key).close()

    def _idle(self) -> list[Hashable]:
        used = set(self._keys.values())
        return [key for key in self._engines if key not in used]

    def _event(self, reports: dict[int, Report]) -> None:
        """One engine trains up to its next event; checkpoints that are due meanwhile are written for all."""
        used = set(self._keys.values())
        key = next(key for key in self._engines if key in used)
        engine = self._engines[key] = self._engines.pop(key)  # its next turn is after those of the others
        mates = {number: trial for number, trial in self._trials.items() if self._key(trial) == key}
        for number, report in self._advance(engine, mates).items():
            self._say(number, report, reports)
        for number, trial in list(self._trials.items()):
            kept = trial.keep() if number not in reports else None
            if kept is not None:
                self._say(number, kept, reports)

    def _key(self, trial: Trial) -> Hashable:
        return self._keys.get(trial.session) if trial.session is not None else None

    def _advance(self, engine: Engine, mates: dict[int, Trial]) -> dict[int, Report]:
        """Train trials that share an engine until one has reached its rung, and measure those that have."""
        try:
            reached("before_train")
            engine.train({trial.session: trial.goal for trial in mates.values() if trial.session}, self._interrupted)
            there = {number: trial for number, trial in mates.items() if trial.at_rung}
            engine.evaluate([trial.session for trial in there.values() if trial.session])
        except Exception as error:
            if len(mates) == 1:
                return {number: trial.failed(error) for number, trial in mates.items()}
            if classify(error) not in OUT_OF_MEMORY:
                raise
        else:
            return {number: trial.measure() for number, trial in there.items()}
        # Outside of the handler: the error holds on to what the pass had allocated.
        _collect()
        youngest = list(mates.items())[-(len(mates) // 2) :]
        return {number: trial.pause() for number, trial in youngest}

    def _interrupted(self) -> bool:
        heartbeat.beat()
        return any(trial.interrupted() for trial in self._trials.values())

    def _say(self, number: int, report: Report, reports: dict[int, Report]) -> None:
        """Note a report; a trial that has ended or paused leaves, and what a failure may have broken is given up."""
        reports[number] = report
        if report.outcome is None and not report.paused:
            return
        self._trials.pop(number).close()
        self._sweep(failed=report.outcome is not None and report.outcome.is_failure)

    def _sweep(self, *, failed: bool) -> None:
        """Forget sessions whose trials have left.

        Args:
            failed: the last one failed, so it was not closed: what broke may break again there. With mates on its
                engine it has to be, without any the engine goes as it is.
        """
        here = {trial.session for trial in self._trials.values()}
        for session in [session for session in self._keys if session not in here]:
            key = self._keys.pop(session)
            if failed and key in self._keys.values():
                session.close()
        if failed:
            for key in self._idle():
                del self._engines[key]
            self._broken()


class OneByOne:
    """Implements `Engine` for sessions that share nothing, such as those of stock PEFT."""

    def __init__(self, open_session: Callable[[TrialConfig], Session]) -> None:
        """Args: open_session: makes one."""
        self._open = open_session

    def open(self, config: TrialConfig) -> Session:
        """There is always a free slot."""
        return self._open(config)

    def train(self, goals: Mapping[Session, int], interrupted: Callable[[], bool] = never) -> None:
        """The first one."""
        for session, rows in list(goals.items())[:1]:
            session.train(rows, interrupted)

    def evaluate(self, sessions: Sequence[Session]) -> None:
        """Each does it by itself."""

    def close(self) -> None:
        """Nothing is borrowed by the engine."""


def _collect() -> None:
    """Give memory back that nothing holds any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
