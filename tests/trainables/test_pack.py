"""Several trials in one process, on the toy engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import MakeTrial, lora

from lorafront.trainables import heartbeat
from lorafront.trainables.config import TrialConfig
from lorafront.trainables.orders import OrderFolder, TrialOrders
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.pack import Pack
from lorafront.trainables.session import Session, never
from lorafront.trainables.toy import ToyEngine, ToySession
from lorafront.trainables.trial import Report, Trial, TrialFolder

RUNGS = (8, 16, 32)


class Diverging(ToySession):
    """Reports a loss that is not a number."""

    def evaluate(self) -> dict[str, Any]:
        return {**super().evaluate(), "eval_loss": math.nan}


class Recording(ToyEngine):
    """Keeps which sessions trained together and whether it was closed; fails when it is told to, and at rank 1."""

    def __init__(self) -> None:
        super().__init__()
        self.together: list[int] = []
        self.closed = False
        self.room = 99  # sessions; more run out of memory
        self.error: Exception | None = None

    def open(self, config: TrialConfig) -> ToySession:
        return Diverging(config.lora) if config.lora.rank == 1 else super().open(config)

    def train(self, goals: Mapping[Session, int], interrupted: Callable[[], bool] = never) -> None:
        self.together.append(len(goals))
        if self.error is not None:
            raise self.error
        if len(goals) > self.room:
            raise MemoryError
        super().train(goals, interrupted)

    def close(self) -> None:
        self.closed = True


class Bench:
    """A pack over recorded engines, with a folder for each trial."""

    def __init__(self, folder: Path, make_trial: MakeTrial) -> None:
        self.folder = folder
        self.orders = OrderFolder(folder / "orders")
        self.make_trial = make_trial
        self.broken = 0
        self.pack = Pack(self.note_broken)
        self.engines: dict[Hashable, list[Recording]] = {}

    def note_broken(self) -> None:
        self.broken += 1

    def join(self, number: int, key: Hashable = "a", rungs: tuple[int, ...] = RUNGS, **changes: float) -> Trial:
        config = self.make_trial(rungs=rungs, **changes)
        trial = Trial(
            partial(self.pack.open, key, partial(self.engine, key), config),
            rungs,
            TrialFolder(self.folder / str(number)),
            TrialOrders(self.orders, number),
        )
        self.pack.join(number, trial)
        return trial

    def engine(self, key: Hashable) -> Recording:
        self.engines.setdefault(key, []).append(Recording())
        return self.engines[key][-1]

    def run(self) -> dict[int, list[Report]]:
        """All that is reported until nobody is left."""
        heard: dict[int, list[Report]] = {}
        while len(self.pack):
            for number, report in self.pack.next_reports().items():
                heard.setdefault(number, []).append(report)
        return heard


@pytest.fixture
def bench(tmp_path: Path, make_trial: MakeTrial) -> Bench:
    return Bench(tmp_path, make_trial)


def alone(folder: Path, **changes: float) -> list[Report]:
    trial = Trial(lambda: ToySession(lora(**changes)), RUNGS, TrialFolder(folder))
    return [trial.next_rung() for _ in RUNGS]


def test_trials_of_a_pack_report_what_they_report_alone(bench: Bench, tmp_path: Path) -> None:
    """Whatever steps their mates take, each one's rungs, values, result file and checkpoint are those of a lone run."""
    different = {0: {"rank": 4}, 1: {"rank": 8, "batch_size": 2}, 2: {"rank": 16, "learning_rate": 1e-3}}
    for number, changes in different.items():
        bench.join(number, **changes)
    heard = bench.run()
    for number, changes in different.items():
        assert heard[number] == alone(tmp_path / f"alone-{number}", **changes)
        folder = TrialFolder(tmp_path / str(number))
        assert folder.read_reports() == heard[number]
        assert [rows for rows, _ in folder.checkpoints()] == [RUNGS[-1]]
    assert bench.engines["a"][0].together[0] == 3


def test_a_trial_joins_and_leaves_while_its_mates_go_on(bench: Bench) -> None:
    """At a rung one is sent away and another one takes its place in the same engine."""
    bench.join(0)
    bench.join(1)
    assert {report.rows for report in bench.pack.next_reports().values()} == {8}
    bench.pack.leave(1)
    bench.join(2)
    heard = bench.run()
    assert [report.rows for report in heard[0]] == [16, 32]
    assert [report.rows for report in heard[2]] == [8, 16, 32]
    assert 1 not in heard
    assert len(bench.engines["a"]) == 1


def test_engines_take_turns_and_an_idle_one_makes_room(bench: Bench) -> None:
    """Two keys have an engine each, event by event; a third key closes what nobody uses any more."""
    bench.join(0, "a")
    bench.join(1, "b")
    assert [set(bench.pack.next_reports()) for _ in range(4)] == [{0}, {1}, {0}, {1}]
    bench.run()
    assert not bench.engines["a"][0].closed
    bench.join(2, "c")
    bench.run()
    assert bench.engines["a"][0].closed
    assert bench.engines["b"][0].closed
    bench.pack.close()
    assert bench.engines["c"][0].closed


def test_what_goes_wrong_with_one_trial_is_its_own(bench: Bench) -> None:
    """A trial that cannot be opened, and one whose loss is no number, end alone; nothing of the others is given up."""
    bench.join(0)
    bench.join(1, rank=1)
    broken = Trial(partial(_refuse, "no such base"), RUNGS, TrialFolder(bench.folder / "2"))
    bench.pack.join(2, broken)
    heard = bench.run()
    assert [report.outcome for report in heard[0]] == [None, None, Outcome.COMPLETE]
    assert [report.outcome for report in heard[1]] == [Outcome.DIVERGED]
    (failed,) = heard[2]
    assert failed.outcome is Outcome.USER_ERROR
    assert "no such base" in failed.error
    assert len(bench.engines["a"]) == 1


def _refuse(reason: str) -> Session:
    raise ValueError(reason)


def test_running_out_of_memory_sends_the_younger_half_away(bench: Bench) -> None:
    """They are paused with all that they did, the others train on, and elsewhere they go on from there."""
    for number in range(5):
        bench.join(number)
    bench.pack.next_reports()
    bench.engines["a"][0].room = 3
    assert bench.pack.next_reports() == {number: Report(8, {}, paused=True) for number in (3, 4)}
    assert len(bench.pack) == 3
    heard = bench.run()
    assert all([report.rows for report in heard[number]] == [16, 32] for number in range(3))
    again = bench.join(4)
    assert again.next_rung().rows == 16
    assert bench.broken == 0


def test_one_that_runs_out_of_memory_alone_has_failed(bench: Bench) -> None:
    """Its engine is given up as it is, and another trial gets a new one."""
    bench.join(0)
    bench.pack.next_reports()
    bench.engines["a"][0].room = 0
    (report,) = bench.pack.next_reports().values()
    assert report.outcome is Outcome.HOST_OOM
    assert bench.broken == 1
    assert not bench.engines["a"][0].closed
    bench.join(1)
    assert bench.run()[1][-1].outcome is Outcome.COMPLETE
    assert len(bench.engines["a"]) == 2


def test_an_error_of_a_shared_pass_is_nobodys(bench: Bench) -> None:
    """With mates it ends the process, so that all are run again; alone it is the trial's own."""
    bench.join(0)
    bench.join(1)
    bench.pack.next_reports()
    bench.engines["a"][0].error = RuntimeError("of whom?")
    with pytest.raises(RuntimeError, match="of whom"):
        bench.pack.next_reports()
    bench.pack.leave(1)
    assert bench.pack.next_reports()[0].outcome is Outcome.USER_ERROR


def test_all_pause_at_the_next_step_when_that_is_asked(bench: Bench) -> None:
    """Trials of every engine save what they have and leave, and go on from there to the same numbers."""
    bench.join(0, "a")
    bench.join(1, "b", batch_size=2)
    bench.pack.next_reports()
    bench.orders.give(bench.orders.now)
    heard = bench.run()
    assert {number: [report.paused for report in reports] for number, reports in heard.items()} == {
        0: [True],
        1: [True],
    }
    bench.orders.now.unlink()
    bench.join(1, "b", batch_size=2)
    assert bench.run()[1][-1] == alone(bench.folder / "alone", batch_size=2)[-1]


def test_one_of_a_pack_is_cancelled_at_its_rung(bench: Bench) -> None:
    """Its mates do not notice."""
    bench.join(0)
    bench.join(1)
    bench.pack.next_reports()
    bench.orders.give(bench.orders.cancelled(1))
    heard = bench.run()
    assert [(report.rows, report.outcome) for report in heard[1]] == [(16, Outcome.CANCELLED)]
    assert heard[0][-1].outcome is Outcome.COMPLETE


def test_checkpoints_are_written_while_mates_train(bench: Bench) -> None:
    """One that is due between rungs is written, and the training of all goes on after it."""
    trial = bench.join(0, rungs=(400,))
    trial.checkpoint_seconds = 0
    bench.join(1, rungs=(400,))
    assert set(bench.run()) == {0, 1}
    assert bench.engines["a"][0].together[:2] == [2, 2]


def test_every_trial_of_a_process_gives_a_sign_of_life(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat renews the files of those that are there, and of nobody who has left."""
    monkeypatch.setattr(heartbeat, "RENEW_SECONDS", 0.0)
    for number in range(3):
        bench.join(number)
    bench.pack.next_reports()
    bench.pack.leave(2)
    before = [heartbeat.read(bench.folder / str(number)) for number in range(3)]
    heartbeat.beat()
    after = [heartbeat.read(bench.folder / str(number)) for number in range(3)]
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, True, False]
