"""Memory with other passes than the search's: corrected predictions to choose by, and what they leave unsaid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import lora
from trained_alone import Trained

from lorafront.search.other_batch import OtherBatch, at_batch, other_batch, passes
from lorafront.search.paths import SearchPaths
from lorafront.search.recommendation import as_json, need, recommend
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.errors import InvalidInput, NoFront
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.sizes import GIB
from lorafront.trainables.config import TrainingConfig
from lorafront.trainables.execution import Execution
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.peft_session import open_session
from lorafront.trainables.trial import Report

NOW = datetime(2025, 1, 1, tzinfo=UTC)
Predict = Callable[[LoraConfiguration, TrainingConfig], int | None]


def growing(one: LoraConfiguration, _: TrainingConfig) -> int:
    """A base, an adapter, and activations for every row of a pass."""
    return GIB + one.rank * 2**22 + one.batch_size * 2**27


def study(*trials: tuple[float, float, int, int], **changes: Any) -> StudyTable:
    """Trials that measured (perplexity, peak VRAM in GiB) with (rows in a pass, passes), numbered from 0."""
    search = parse_search({"name": "n", "model": "m", "data": {"path": "d"}, **changes})
    records = [
        TrialRecord(
            number, "COMPLETE", lora(rank=number + 1, batch_size=rows, gradient_accumulation=times), 1, (),
            Report(64, {"perplexity": ppl, "peak_vram_gb": vram, "peak_vram_source": "cuda_allocator"},
                   Outcome.COMPLETE),
            NOW, NOW,
        )
        for number, (ppl, vram, rows, times) in enumerate(trials)
    ]  # fmt: skip
    return StudyTable(search, tuple(records), {}, ())


BATCH = st.sampled_from([1, 2, 3, 4, 8, 16])
NUMBERS = st.tuples(st.floats(1.5, 50).map(lambda x: round(x, 2)), st.floats(1, 40).map(lambda x: round(x, 2)))
TRIALS = st.lists(st.builds(lambda n, b, t: (*n, b, t), NUMBERS, BATCH, st.integers(1, 4)), min_size=1, max_size=12)


@given(points=st.lists(NUMBERS, min_size=1, max_size=12), rows=BATCH, times=st.integers(1, 4),
       gib=st.one_of(st.none(), st.floats(2, 45)), factor=st.sampled_from([None, 0, 1, 7]))  # fmt: skip
def test_with_its_own_batch_nothing_changes(points, rows: int, times: int, gib: float | None, factor) -> None:
    """Every peak is the very number that was measured, so is the choice; whatever a prediction would say."""
    table = study(*((*point, rows, times) for point in points))
    moved = at_batch(table, rows, lambda one, _: None if factor is None else factor * one.rank)
    assert moved == table
    size = None if gib is None else int(gib * GIB)
    try:
        expected = as_json(recommend(table, size))
    except NoFront:
        with pytest.raises(NoFront):
            recommend(moved, size)
    else:
        assert as_json(recommend(moved, size)) == expected


@given(trials=TRIALS, rows=BATCH, gib=st.floats(2, 45))
def test_the_choice_is_made_with_corrected_predictions(trials, rows: int, gib: float) -> None:
    """Measured with its own rows, times what is predicted of the others over what is of its own."""
    table, size = study(*trials), int(gib * GIB)
    moved = at_batch(table, rows, growing)
    training = table.search.training
    for before, after in zip(table.trials, moved.trials, strict=True):
        other = before.lora.model_copy(update={"batch_size": rows})
        factor = growing(other, training) / growing(before.lora, training)
        assert after.measurements["peak_vram_gb"] == pytest.approx(before.measurements["peak_vram_gb"] * factor)
        assert after.lora == before.lora
        assert after.measurements["perplexity"] == before.measurements["perplexity"]
        kept = passes(before.lora, rows) == before.lora.gradient_accumulation and before.lora.batch_size == rows
        assert after.measurements["peak_vram_source"] == ("cuda_allocator" if kept else "predicted")
    fitting = [trial for trial in moved.trials if need(trial) <= size]
    assume(fitting)
    chosen = recommend(moved, size).trial
    assert need(chosen) <= size
    assert chosen.measurements["perplexity"] == min(trial.measurements["perplexity"] for trial in fitting)


@given(trials=TRIALS, rows=BATCH, more=BATCH, gib=st.floats(2, 45))
def test_a_larger_batch_never_leaves_a_better_choice(trials, rows: int, more: int, gib: float) -> None:
    """On the same card, where more rows take more memory."""
    assume(rows <= more)
    found = []
    for batch in (rows, more):
        try:
            chosen = recommend(at_batch(study(*trials), batch, growing), int(gib * GIB)).trial
            found.append(chosen.measurements["perplexity"])
        except NoFront:
            found.append(float("inf"))
    assert found[0] <= found[1]


@given(rows=BATCH, batch=BATCH, times=st.integers(1, 8))
def test_passes_come_nearest_to_the_rows_of_a_step(rows: int, batch: int, times: int) -> None:
    """The same rows where they divide."""
    step, found = batch * times, passes(lora(batch_size=batch, gradient_accumulation=times), rows)
    assert found >= 1
    assert all(abs(found * rows - step) <= abs(other * rows - step) for other in range(1, 200))
    if step % rows == 0:
        assert found * rows == step


def test_a_trial_is_moved_as_it_was_executed() -> None:
    """Where passes were cut to fit, the cut ones are what was measured."""
    way = Execution(batch_size=2, gradient_accumulation=4, gradient_checkpointing=True, optimizer="adamw")
    table = study((3.0, 4.0, 8, 1))
    cut = replace(table, trials=(replace(table.trials[0], execution=way),))
    asked: list[tuple[int, int, bool]] = []

    def predict(one: LoraConfiguration, training: TrainingConfig) -> int:
        asked.append((one.batch_size, one.gradient_accumulation, training.gradient_checkpointing))
        return one.batch_size

    assert at_batch(cut, 2, predict) == cut
    moved = at_batch(cut, 4, predict)
    assert asked == [(2, 4, True), (4, 2, True)]
    assert moved.trials[0].measurements["peak_vram_gb"] == 8.0


def test_what_cannot_be_predicted_has_no_peak() -> None:
    """So nothing is chosen by a number of another batch."""
    table = study((3.0, 4.0, 8, 1), (2.0, 3.0, 4, 1))
    moved = at_batch(table, 4, lambda *_: None)
    assert [trial.measurements["peak_vram_gb"] for trial in moved.trials] == [None, 3.0]
    assert recommend(moved).trial.number == 1


def test_people_are_told_what_was_measured_and_what_was_not() -> None:
    """The batch of the search, whether the step is the same, and that the search varied it where it did."""
    table = study((3.0, 4.0, 8, 1))

    def said(rows: int) -> str:
        return " ".join(
            OtherBatch(at_batch(table, rows, growing), rows, on_cpu=True).lines(table.trials[0], "perplexity")
        )

    told = {rows: said(rows) for rows in (2, 8, 16)}
    assert "memory with 2 rows a pass is predicted, as tensors are counted on a CPU, and corrected by what" in told[2]
    assert "measured with 8 rows a step, and 2 x 4 are as many: it stands" in told[2]
    assert "this trial ran with 8 rows a pass" in told[8]
    assert "measured with 8 rows a step, not with 16 x 1 = 16: that wants another learning rate" in told[16]
    varied = study((3.0, 4.0, 8, 1), space={"batch_size": [4, 8]})
    assert "the search varied batch_size" in " ".join(OtherBatch(varied, 2, on_cpu=False).lines(varied.trials[0], "x"))
    said = OtherBatch(varied, 2, on_cpu=False).as_json(varied.trials[0], "perplexity")
    assert (said["rows_per_pass"], said["passes_per_step"], said["rows_per_step_of_trial"]) == (2, 4, 8)
    assert (said["predicted"], len(said["notes"])) == (True, 3)


@pytest.fixture(scope="module")
def one(answered: Trained) -> Trained:
    """A search that has one trial, with four rows in a pass."""
    table, paths, prepared = answered
    return replace(table, trials=table.trials[1:]), paths, prepared


@pytest.mark.parametrize(("rows", "times"), [(8, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_a_prediction_is_what_a_session_measures(one: Trained, bases: BaseCache, rows: int, times: int) -> None:
    """Of a search on a CPU to the byte, with other rows in a pass and with other passes."""
    table, paths, prepared = one
    changed = table.trials[0].lora.model_copy(update={"batch_size": rows, "gradient_accumulation": times})
    session = open_session(prepared.trial(changed), bases, references=False)
    measured = session.memory.allocated
    session.close()
    found = other_batch(table, table, paths, rows)
    assert (found.on_cpu, found.unknown) == (True, 0)
    assert recommend(found.table).trial.measurements["peak_vram_gb"] * GIB == pytest.approx(measured, abs=1)


def test_limits_of_the_file_hold_with_every_batch(one: Trained) -> None:
    """Where nothing keeps them any more the size of the batch is named; with its own batch all is as it was."""
    table, paths, _ = one
    assert other_batch(table, table, paths, 4).table == table
    limit = {"peak_vram_gb": f"<= {table.trials[0].measurements['peak_vram_gb'] * 1.01}"}
    limited = replace(table, search=table.search.model_copy(update={"constraints": limit}))
    with pytest.raises(NoFront, match=r"with 64 rows a pass no trial of 'answered' keeps .*\(peak_vram_gb <="):
        other_batch(limited, limited, paths, 64)


@pytest.mark.parametrize(
    ("changes", "words"), [({"imported": "t.csv"}, "was imported from t.csv"), ({"task": "own:TASK"}, "got own:TASK")]
)
def test_a_search_that_cannot_be_predicted_says_why(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """One of somebody's table, one whose batches nobody knows; and no batch of no rows."""
    table = study((3.0, 4.0, 8, 1))
    table = replace(table, search=table.search.model_copy(update=changes))
    with pytest.raises(InvalidInput, match=words):
        other_batch(table, table, SearchPaths(tmp_path), 2)
    with pytest.raises(InvalidInput, match="--batch: takes 1 to 4096 rows"):
        other_batch(study((3.0, 4.0, 8, 1)), table, SearchPaths(tmp_path), 0)
