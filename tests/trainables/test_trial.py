"""A trial from rung to rung, on the toy session."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lora

from lorafront.trainables.outcome import Outcome, classify
from lorafront.trainables.session import Measurements
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report, Trial, TrialFolder

RUNGS = (10, 20, 40)


def toy() -> ToySession:
    return ToySession(lora())


def run(trial: Trial) -> list[Report]:
    reports = [trial.next_rung()]
    while reports[-1].outcome is None:
        reports.append(trial.next_rung())
    return reports


class Broken(ToySession):
    """Fails at a given row with a given error."""

    error: BaseException = RuntimeError("nothing")

    def train(self, rows: int) -> None:
        if rows >= 20:
            raise self.error
        super().train(rows)


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
    """An exception inside a trial becomes its outcome and a text that ends with what happened."""
    make: Callable[[], Broken] = lambda: Broken(lora())  # noqa: E731
    Broken.error = error
    folder = TrialFolder(tmp_path / "trial")
    last = run(Trial(make, RUNGS, folder))[-1]
    assert last.outcome is outcome
    assert outcome.is_failure
    assert str(error).splitlines()[0:1] == last.error.splitlines()[-1].partition(": ")[2].splitlines() or not str(error)
    assert folder.read_reports()[-1] == last


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
