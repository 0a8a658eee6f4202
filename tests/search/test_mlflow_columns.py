"""Names to sort and filter by, the description of a search's run, and the views that it links to."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import lora

from lorafront.search.confirm import replicates
from lorafront.search.confirmation import confirmation
from lorafront.search.front import front_of
from lorafront.search.mlflow_columns import Columns, Value, columns_of, confirmed_columns
from lorafront.search.mlflow_note import MOST_MEMBERS, note
from lorafront.search.mlflow_views import FRONT, TAG, TRIALS, view_tags
from lorafront.search.paths import RootPaths
from lorafront.search.search_file import Confirm, parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
RUNGS = (16, 32, 64)
MLFLOW_KEEPS = 5000  # characters of a tag, in the oldest servers


def trial(
    number: int, perplexity: float, gib: float, outcome: Outcome = Outcome.COMPLETE, rungs: int = 3
) -> TrialRecord:
    measured = {"perplexity": perplexity, "peak_vram_gb": gib, "train_seconds": 2.0}
    reports = tuple(Report(rows, {**measured, "perplexity": perplexity * 64 / rows}) for rows in RUNGS[:rungs])
    state = {Outcome.COMPLETE: "COMPLETE", Outcome.USER_ERROR: "FAIL"}.get(outcome, "PRUNED")
    result = Report(RUNGS[rungs - 1], reports[-1].measurements, outcome)
    return TrialRecord(number, state, lora(rank=number + 1), 1, reports, result, BEGAN, BEGAN + timedelta(minutes=1))


def study(*trials: TrialRecord, **changes: object) -> StudyTable:
    raw = {"name": "n", "model": "someone/model", "data": {"path": "d"}, "space": {"rank": [1, 2, 200]}, **changes}
    return StudyTable(parse_search(raw), trials, {}, (), data={"rungs": list(RUNGS)})


def newest(columns: Columns) -> dict[str, float]:
    ordered = sorted(columns.metrics, key=lambda one: (one.step, one.time))
    return {one.name: one.value for one in ordered}


@pytest.mark.parametrize(("rungs", "outcome"), [(1, Outcome.STOPPED), (2, Outcome.STOPPED), (2, Outcome.CANCELLED)])
def test_a_trial_says_the_rung_at_which_it_was_stopped(rungs: int, outcome: Outcome) -> None:
    """Counted from 1; how many rows that are is a number to sort by."""
    table = study(trial(0, 9.0, 1.0), trial(1, 20.0, 2.0, outcome, rungs))
    found = columns_of(table.trials[1], table, pareto=False)
    assert found.tags["stopped_at_rung"] == str(rungs)
    assert newest(found)["rows_seen"] == RUNGS[rungs - 1]
    assert "pareto" not in found.tags


def test_trials_that_were_not_stopped_name_no_rung() -> None:
    """Neither one at full fidelity nor one that failed."""
    table = study(trial(0, 9.0, 1.0), trial(1, 20.0, 2.0, Outcome.USER_ERROR, 1))
    assert not any("stopped_at_rung" in columns_of(one, table, pareto=True).tags for one in table.trials)


def test_numbers_that_vary_are_metrics_because_parameters_sort_as_text() -> None:
    """The same number stands among the parameters; what is the same for all is no column of numbers."""
    table = study(
        trial(7, 9.0, 1.0), space={"rank": [2, 8], "learning_rate": {"low": 1e-4, "high": 1e-2}, "dropout": 0}
    )
    found = columns_of(table.trials[0], table, pareto=True)
    assert newest(found)["rank"] == 8.0 == float(found.params["rank"])
    assert {"alpha", "learning_rate"} <= newest(found).keys()
    assert not {"dropout", "modules", "quantization", "seed"} & newest(found).keys()
    assert [one.step for one in found.metrics if one.name == "perplexity"] == list(RUNGS)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-9, 9), st.integers(0, 3), st.integers(0, 3)), max_size=9))
def test_a_run_stands_in_for_columns_where_it_has_all_of_them(points: list[tuple[str, float, int, int]]) -> None:
    """By the newest value of each metric; where anything is missing or different it does not."""
    from mlflow.entities import Metric, Param, RunData, RunTag

    unique = {(name, step, time): Value(name, value, time, step) for name, value, time, step in points}
    columns = Columns(tuple(unique.values()), {"rank": "8"}, {"pareto": "true"})
    shown = [Metric(name, value, 0, 0) for name, value in newest(columns).items()]
    params, tags = [Param("rank", "8")], [RunTag("pareto", "true"), RunTag("other", "x")]
    assert columns.stand_in(RunData(shown, params, tags))
    assert not columns.stand_in(RunData(shown, params, [RunTag("pareto", "false")]))
    assert not columns.stand_in(RunData(shown, [], tags))
    assert not shown or not columns.stand_in(RunData(shown[1:], params, tags))


def test_confirmed_trials_have_their_mean_its_interval_and_their_chance() -> None:
    """Under names of their own; more replicates are a newer value."""
    table = study(trial(0, 9.0, 1.0), trial(1, 5.0, 2.0))
    search = replicates(table, Confirm(seeds=3), apart=False)

    def found(seeds: int) -> tuple[Columns, Columns]:
        own = [
            replace(one, number=10 * one.number + seed, lora=one.lora.with_seed(seed),
                    result=replace(one.result, measurements={"perplexity": one.measurements["perplexity"] + seed / 9,
                                                             "peak_vram_gb": one.measurements["peak_vram_gb"]}))
            for one in table.trials for seed in range(1, seeds + 1) if one.result
        ]  # fmt: skip
        known = confirmation(table, StudyTable(search, tuple(own), {}, ()), seeds)
        assert known is not None
        first, second = (confirmed_columns(entry, known) for entry in known.entries)
        return first, second

    two, three = found(2)[0], found(3)[0]
    low, mean, high = (newest(two)[f"confirmed_perplexity{end}"] for end in ("_low", "", "_high"))
    assert low < mean < high
    assert newest(two)["front_probability"] > 0.9
    assert newest(two)["confirmed_seeds"] == 2.0
    assert two.tags == {"confirmed": "kept"}
    assert min(one.time for one in three.metrics) > max(one.time for one in two.metrics)


def test_a_description_begins_with_what_came_out_and_names_the_commands() -> None:
    """The front as a table, what was searched, and the root where it is not the usual one."""
    table = study(trial(0, 9.0, 1.0), trial(1, 5.0, 2.0), trial(2, 70.0, 3.0))
    text = note(table, RootPaths(Path("/data/my runs")).search("n"), "7")
    assert text.startswith("**2 on the front**")
    assert "**<code>someone/model</code>** on **<code>d</code>**" in text
    for member in front_of(table):
        assert re.search(rf"^\| {member.number}&emsp; \| {member.lora.label}&emsp; \|", text, re.MULTILINE)
    assert "lorafront export n --out exports/n --root '/data/my runs'" in text
    assert "lorafront register n 1 --as n --root '/data/my runs'" in text
    assert "| rank&emsp; | 1, 2, 200 |" in text
    assert "--root" not in note(table, RootPaths(Path("runs")).search("n"), "7")


def test_a_description_stays_within_what_mlflow_keeps_and_runs_nothing() -> None:
    """However large the front and the space are, and whatever a path is called; also before the first trial."""
    evil = "<script>alert(1)</script>"
    trials = [trial(number, 100.0 - number, 1.0 + number) for number in range(90)]
    table = study(*trials, space={"rank": list(range(1, 200))}, data={"path": evil})
    text = note(table, RootPaths(Path("runs")).search("n"), "7")
    assert len(text) < MLFLOW_KEEPS
    assert f"and {90 - MOST_MEMBERS} more, in front.csv" in text
    assert "<script>" not in text
    assert "lorafront export" not in note(study(), RootPaths(Path("runs")).search("n"), "7")


def test_views_show_the_objectives_and_what_varied_in_the_order_of_the_quality() -> None:
    """The front alone, and all trials with where they were stopped."""
    search = study(
        task="seq_cls", objectives=["accuracy", "adapter_mb"], data={"path": "d", "format": "text_label"}
    ).search
    views = {key.removeprefix(TAG): json.loads(value) for key, value in view_tags(search).items()}
    assert views[FRONT]["searchFilter"] == "tags.pareto = 'true'"
    for view in views.values():
        assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`accuracy`", False)
        assert {"metrics.`accuracy`", "metrics.`adapter_mb`", "metrics.`rank`"} <= set(view["selectedColumns"])
    assert "tags.`stopped_at_rung`" in views[TRIALS]["selectedColumns"]
