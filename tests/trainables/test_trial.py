"""A trial from rung to rung, on the toy session."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lora

from lorafront.trainables.orders import OrderFolder, TrialOrders
from lorafront.trainables.outcome import Outcome, classify
from lorafront.trainables.session import Measurements, never
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report, Trial, TrialFolder

RUNGS = (10, 20, 40)


def toy() -> ToySession:
    return ToySession(lora())


def run(trial: Trial) -> list[Report]:
    reports = [trial.next_rung()]
    while reports[-1].outcome is None and not reports[-1].paused:
        reports.append(trial.next_rung())
    return reports


class Broken(ToySession):
    """Fails at a given row with a given error."""

    error: BaseException = RuntimeError("nothing")

    def train(self, rows: int, interrupted: Callable[[], bool] = never) -> None:
        if rows >= 20:
            raise self.error
        super().train(rows, interrupted)


class Diverging(ToySession):
    """Reports a loss that is not a number from row 20 on."""

    def evaluate(self) -> Measurements:
        measured = super().evaluate()
        if self.rows_seen >= 20:
            measured["eval_loss"] = measured["perplexity"] = math.nan
        return measured


def test_reports_at_every_rung_and_leaves_its_result(tmp_path: Path) -> None:
    """A trial reports at each rung, keeps its last checkpoint, and its result file says what was reported."""
    folder = TrialFolder(tmp_path / "trial")
    reports = run(Trial(toy, RUNGS, folder))
    assert [report.rows for report in reports] == list(RUNGS)
    assert [report.outcome for report in reports] == [None, None, Outcome.COMPLETE]
    assert folder.read_reports() == [*reports[:-1], reports[-1]]
    assert [rows for rows, _ in folder.checkpoints()] == [40]


def test_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """A trial that is started again in its folder trains only what is missing and ends with the same numbers."""
    whole = run(Trial(toy, RUNGS, TrialFolder(tmp_path / "whole")))
    folder = TrialFolder(tmp_path / "cut")
    first = Trial(toy, RUNGS, folder)
    first.next_rung()
    first.next_rung()
    again = run(Trial(toy, RUNGS, folder))
    assert [report.rows for report in again] == [40]
    assert again[-1] == whole[-1]


def test_skips_a_damaged_checkpoint(tmp_path: Path) -> None:
    """When the newest checkpoint does not verify, the one before it is used."""
    folder = TrialFolder(tmp_path / "trial")
    trial = Trial(toy, RUNGS, folder)
    trial.next_rung()
    trial.next_rung()
    (folder.checkpoint(20) / "toy.json").write_text("{}")
    assert [report.rows for report in run(Trial(toy, RUNGS, folder))] == [20, 40]


def test_a_result_that_was_not_written_is_not_trained_again(tmp_path: Path) -> None:
    """A trial that died between its last checkpoint and its result reports at once what it had measured."""
    folder = TrialFolder(tmp_path / "trial")
    whole = run(Trial(toy, RUNGS, folder))
    folder.result.unlink()

    def refuse() -> ToySession:
        pytest.fail("nothing is left to train")

    assert run(Trial(refuse, RUNGS, folder)) == [whole[-1]]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), Outcome.CUDA_OOM),
        (MemoryError(), Outcome.HOST_OOM),
        (OSError(errno.ENOSPC, "No space left on device"), Outcome.DISK_FULL),
        (ValueError("of its own"), Outcome.USER_ERROR),
    ],
)
def test_a_failure_is_a_report_with_its_reason(tmp_path: Path, error: BaseException, outcome: Outcome) -> None:
    """An exception becomes an outcome with its text, and a result file unless the disk is full: then it runs again."""
    make: Callable[[], Broken] = lambda: Broken(lora())  # noqa: E731
    Broken.error = error
    folder = TrialFolder(tmp_path / "trial")
    last = run(Trial(make, RUNGS, folder))[-1]
    assert last.outcome is outcome
    assert outcome.is_failure
    assert str(error).splitlines()[0:1] == last.error.splitlines()[-1].partition(": ")[2].splitlines() or not str(error)
    assert folder.read_reports()[-1:] == ([] if outcome is Outcome.DISK_FULL else [last])
    assert (last.measurements.get("memory_at_failure_gb", 0) > 0) == (outcome in {Outcome.CUDA_OOM, Outcome.HOST_OOM})


def test_divergence_is_an_outcome(tmp_path: Path) -> None:
    """A loss that is not a number ends the trial as diverged, with JSON that everybody can read."""
    folder = TrialFolder(tmp_path / "trial")
    reports = run(Trial(lambda: Diverging(lora()), RUNGS, folder))
    assert [report.outcome for report in reports] == [None, Outcome.DIVERGED]
    stored = folder.read_reports()[-1]
    assert stored.measurements["eval_loss"] is None


def test_every_outcome_survives_storage() -> None:
    """Each outcome reads back from what is stored of it."""
    assert all(Outcome.of(outcome.stored) is outcome for outcome in Outcome)
    assert classify(KeyError("x")) is Outcome.USER_ERROR


class Watched(ToySession):
    """Calls a function after each step."""

    after_step: Callable[[int], object] = staticmethod(lambda rows: rows)

    def train(self, rows: int, interrupted: Callable[[], bool] = never) -> None:
        while self.rows_seen < rows and not interrupted():
            super().train(min(rows, self.rows_seen + 4))
            self.after_step(self.rows_seen)


def test_pauses_at_the_next_step_and_goes_on_from_there(tmp_path: Path) -> None:
    """Asked to pause now, a trial saves after the step that it is in; later it trains the rest, to the same numbers."""
    whole = run(Trial(toy, RUNGS, TrialFolder(tmp_path / "whole")))
    folder, orders = TrialFolder(tmp_path / "trial"), OrderFolder(tmp_path / "orders")
    Watched.after_step = staticmethod(lambda rows: orders.give(orders.now) if rows == 28 else None)
    reports = run(Trial(lambda: Watched(lora()), RUNGS, folder, TrialOrders(orders, 7)))
    assert [(report.rows, report.paused, report.outcome) for report in reports] == [
        (10, False, None), (20, False, None), (28, True, None),
    ]  # fmt: skip
    assert reports[-1].measurements == {}
    assert [rows for rows, _ in folder.checkpoints()] == [28, 20]
    loaded: list[int] = []
    Watched.after_step = staticmethod(loaded.append)
    again = run(Trial(lambda: Watched(lora()), RUNGS, folder))
    assert loaded == [32, 36, 40]
    assert again == [whole[-1]]
    assert folder.read_reports() == whole


def test_pauses_at_the_next_rung_with_its_measurements(tmp_path: Path) -> None:
    """Asked to pause, a trial finishes the rung that it trains for, reports it, and leaves."""
    folder, orders = TrialFolder(tmp_path / "trial"), OrderFolder(tmp_path / "orders")
    Watched.after_step = staticmethod(lambda rows: orders.give(orders.rung) if rows == 14 else None)
    reports = run(Trial(lambda: Watched(lora()), RUNGS, folder, TrialOrders(orders, 7)))
    assert [(report.rows, report.paused) for report in reports] == [(10, False), (20, True)]
    assert reports[-1].measurements["perplexity"] > 1
    assert [report.rows for report in run(Trial(toy, RUNGS, folder))] == [40]


def test_a_trial_that_has_not_begun_pauses_without_a_session(tmp_path: Path) -> None:
    """Where the order was there first, nothing is loaded and nothing is written."""
    orders = OrderFolder(tmp_path / "orders")
    orders.give(orders.rung)

    def refuse() -> ToySession:
        pytest.fail("a session is expensive")

    trial = Trial(refuse, RUNGS, TrialFolder(tmp_path / "trial"), TrialOrders(orders, 7))
    assert run(trial) == [Report(0, {}, paused=True)]
    assert not (tmp_path / "trial").exists()


def test_a_cancelled_trial_ends_at_its_next_rung(tmp_path: Path) -> None:
    """One trial alone ends as cancelled, with what it measured at that rung; others go on."""
    folder, orders = TrialFolder(tmp_path / "trial"), OrderFolder(tmp_path / "orders")
    orders.give(orders.cancelled(8))
    Watched.after_step = staticmethod(lambda rows: orders.give(orders.cancelled(7)) if rows == 14 else None)
    reports = run(Trial(lambda: Watched(lora()), RUNGS, folder, TrialOrders(orders, 7)))
    assert [(report.rows, report.outcome) for report in reports] == [(10, None), (20, Outcome.CANCELLED)]
    assert not Outcome.CANCELLED.is_failure
    assert folder.read_reports() == reports
    assert reports[-1].measurements["perplexity"] > 1


def test_a_trial_at_its_end_is_finished_whatever_was_asked(tmp_path: Path) -> None:
    """At the last rung there is nothing left to pause or cancel."""
    folder, orders = TrialFolder(tmp_path / "trial"), OrderFolder(tmp_path / "orders")

    def ask(rows: int) -> None:
        if rows == 36:
            orders.give(orders.rung)
            orders.give(orders.cancelled(7))

    Watched.after_step = staticmethod(ask)
    reports = run(Trial(lambda: Watched(lora()), RUNGS, folder, TrialOrders(orders, 7)))
    assert (reports[-1].outcome, reports[-1].paused) == (Outcome.COMPLETE, False)


def test_checkpoints_between_rungs_when_they_are_due(tmp_path: Path) -> None:
    """Every so many seconds a checkpoint is written; a trial whose process died goes on from the newest."""
    folder = TrialFolder(tmp_path / "trial")
    now = [0.0]
    found: list[list[int]] = []

    def step(rows: int) -> None:
        now[0] += 1
        found.append([rows for rows, _ in folder.checkpoints()])
        if rows == 38:
            raise KeyboardInterrupt  # not an error of the trial: nothing is caught, as when the process is killed

    Watched.after_step = staticmethod(step)
    trial = Trial(lambda: Watched(lora()), (10, 40), folder, checkpoint_seconds=3, clock=lambda: now[0])
    assert trial.next_rung().rows == 10  # steps of 4, so 12 rows in three seconds
    with pytest.raises(KeyboardInterrupt):
        trial.next_rung()
    assert [rows for rows, _ in folder.checkpoints()] == [34, 22]
    assert found[-1] == [34, 22]
    Watched.after_step = staticmethod(lambda rows: found.append([rows]))
    assert run(Trial(lambda: Watched(lora()), (10, 40), folder))[-1].outcome is Outcome.COMPLETE
    assert found[-2:] == [[38], [40]]


def test_checkpoints_that_are_always_due_do_not_hold_the_training_up(tmp_path: Path) -> None:
    """However short the interval, there is a step between two checkpoints."""
    folder = TrialFolder(tmp_path / "trial")
    assert run(Trial(toy, RUNGS, folder, checkpoint_seconds=0))[-1].outcome is Outcome.COMPLETE


def test_a_paused_report_survives_the_wire() -> None:
    """What a worker says of a pause is what the driver hears, and older reports had none."""
    paused = Report(12, {}, paused=True)
    assert Report.from_json(paused.as_json()) == paused
    assert Report.from_json({"rows": 1, "measurements": {}, "outcome": None, "error": ""}).paused is False


def test_what_was_half_written_is_swept(tmp_path: Path) -> None:
    """A folder and a file that a dead worker left aside are gone once its trial is taken up again."""
    folder = TrialFolder(tmp_path / "trial")
    (folder.path / "ckpt-10.tmp-0").mkdir(parents=True)
    (folder.path / "result.json.tmp-0").write_text("{")
    Trial(toy, RUNGS, folder).next_rung()
    assert [path.name for path in folder.path.iterdir() if ".tmp-" in path.name] == []
    assert [rows for rows, _ in folder.checkpoints()] == [10]
