"""The front: exactly what no feasible trial beats, whatever the directions and limits."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import lora

from lorafront.search.front import as_json, best_under, front, front_of, values
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.objectives import OBJECTIVES, Limit, Objective
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

QUALITY, VRAM = OBJECTIVES["perplexity"], OBJECTIVES["peak_vram_gb"]
ACCURACY = Objective("accuracy", "accuracy", "", "maximize", "share of right answers")
ADAPTER = OBJECTIVES["adapter_mb"]
AXES = (QUALITY, VRAM, ACCURACY, ADAPTER)


def record(number, state="COMPLETE", **measured):
    """A trial that has ended with these measurements."""
    outcome = {"COMPLETE": Outcome.COMPLETE, "PRUNED": Outcome.STOPPED}.get(state, Outcome.USER_ERROR)
    now = datetime(2025, 1, 1, tzinfo=UTC)
    return TrialRecord(number, state, lora(), 1, (), Report(64, measured, outcome), now, now)


def study(*trials, **sections):
    """A study of a search for perplexity and VRAM."""
    search = parse_search({"name": "n", "model": "m", "data": {"path": "d"}, **sections})
    return StudyTable(search, trials, {}, ())


# Few values, so that ties and equal points are common; some are missing or not finite.
SCORES = st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.inf, math.nan])
MEASURED = st.dictionaries(st.sampled_from([axis.name for axis in AXES]), SCORES, min_size=3)
STATES = st.sampled_from(["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "FAIL", "RUNNING"])
TRIALS = st.lists(st.tuples(STATES, MEASURED), max_size=25).map(
    lambda drawn: [record(number, state, **measured) for number, (state, measured) in enumerate(drawn)]
)
LIMITS = st.lists(
    st.builds(
        Limit, st.sampled_from([a.name for a in AXES]), st.sampled_from(["<=", ">="]), st.sampled_from([2.0, 4.5, 6.0])
    ),
    max_size=2,
).map(tuple)
OBJECTIVE_LISTS = st.lists(st.sampled_from(AXES), min_size=1, max_size=4, unique=True)


def losses(trial, objectives):
    """The objectives as numbers of which less is better."""
    signs = (-1 if objective.direction == "maximize" else 1 for objective in objectives)
    return [
        sign * trial.measurements.get(objective.name, math.nan)
        for sign, objective in zip(signs, objectives, strict=True)
    ]


def beats(one, other):
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def allowed(trial, objectives, limits):
    inside = all(
        limit.name in trial.measurements
        and math.isfinite(trial.measurements[limit.name])
        and (trial.measurements[limit.name] - limit.bound) * (1 if limit.operator == "<=" else -1) <= 0
        for limit in limits
    )
    return trial.state == "COMPLETE" and inside and all(map(math.isfinite, losses(trial, objectives)))


@given(TRIALS, OBJECTIVE_LISTS, LIMITS)
def test_front_is_what_nobody_beats(trials, objectives, limits):
    """The front is every complete, feasible, finite trial that no other such trial beats, equal ones included."""
    able = [trial for trial in trials if allowed(trial, objectives, limits)]
    points = {trial.number: losses(trial, objectives) for trial in able}
    expected = {n for n, point in points.items() if not any(beats(other, point) for other in points.values())}
    members = front(trials, objectives, limits)
    assert {trial.number for trial in members} == expected
    assert len(members) == len(expected)


@given(TRIALS, OBJECTIVE_LISTS, LIMITS)
def test_front_is_in_order(trials, objectives, limits):
    """Members come best first on the first objective, then by number."""
    keys = [(losses(trial, objectives)[0], trial.number) for trial in front(trials, objectives, limits)]
    assert keys == sorted(keys)


@given(TRIALS, OBJECTIVE_LISTS, LIMITS, st.randoms())
def test_front_does_not_depend_on_the_order_of_trials(trials, objectives, limits, random):
    """The same trials in another order have the same front."""
    shuffled = list(trials)
    random.shuffle(shuffled)
    assert front(shuffled, objectives, limits) == front(trials, objectives, limits)


def test_equal_trials_are_all_kept_by_number():
    """Trials with the same values are all on the front, the earlier one first, in whatever order they come."""
    trials = [record(number, perplexity=3.0, peak_vram_gb=8.0) for number in (2, 0, 1)]
    assert [trial.number for trial in front(trials, [QUALITY, VRAM], ())] == [0, 1, 2]


@given(TRIALS, OBJECTIVE_LISTS, LIMITS)
def test_front_of_the_front_is_the_front(trials, objectives, limits):
    """Trials that are not on the front do not change it."""
    members = front(trials, objectives, limits)
    assert front(members, objectives, limits) == members


def test_no_trials_have_no_front():
    """Without a complete trial within the limits the front is empty."""
    assert front([], [QUALITY, VRAM], ()) == []
    far = record(0, perplexity=3.0, peak_vram_gb=13.0)
    assert front([far], [QUALITY, VRAM], (Limit("peak_vram_gb", "<=", 12.0),)) == []


@pytest.mark.parametrize("value", [None, "3", math.nan, math.inf])
def test_values_that_are_no_numbers_keep_a_trial_away(value):
    """A trial whose objective is no finite number is not on the front."""
    assert front([record(0, perplexity=value, peak_vram_gb=1.0)], [QUALITY, VRAM], ()) == []


def test_limits_on_values_that_are_no_numbers_keep_a_trial_away():
    """A trial whose limited measurement was not finite, stored as None, is not on the front."""
    trial = record(0, perplexity=3.0, peak_vram_gb=1.0, train_seconds=None)
    assert front([trial], [QUALITY, VRAM], (Limit("train_seconds", "<=", 9.0),)) == []


def test_values_are_floats_in_the_order_of_the_objectives():
    """The values of a trial follow the objectives; what was not measured is NaN."""
    found = values(record(0, perplexity=3, adapter_mb="?"), [ADAPTER, QUALITY, VRAM])
    assert math.isnan(found[0])
    assert found[1] == 3.0
    assert isinstance(found[1], float)
    assert math.isnan(found[2])


def test_front_of_a_study_uses_its_objectives_and_limits():
    """A study's front is that of its complete trials under the file's objectives and constraints."""
    table = study(
        record(0, perplexity=3.0, peak_vram_gb=8.0),
        record(1, perplexity=4.0, peak_vram_gb=6.0),
        record(2, perplexity=2.0, peak_vram_gb=13.0),
        record(3, "PRUNED", perplexity=1.0, peak_vram_gb=1.0),
        record(4, perplexity=4.5, peak_vram_gb=7.0),
        constraints={"peak_vram_gb": "<= 12"},
    )
    assert [trial.number for trial in front_of(table)] == [0, 1]


SIZES = [
    ("12GB", 2), ("12", 2), ("8GB", 0), ("8 gb", 0), ("8GiB", 0), ("8192MB", 0), ("8191 MiB", 1), ("6.5G", 1),
    ("6144m", 1), ("5.9GB", None),
]  # fmt: skip


@pytest.mark.parametrize(("size", "number"), SIZES)
def test_best_under_a_size_is_the_best_that_fits(size, number):
    """Of what needs at most so much VRAM the best on quality is found, whichever way the size is written."""
    sizes = enumerate([(3.0, 8.0), (4.0, 6.0), (2.0, 12.0)])
    table = study(*(record(n, perplexity=quality, peak_vram_gb=vram) for n, (quality, vram) in sizes))
    assert [trial.number for trial in best_under(table, size)] == ([] if number is None else [number])


def test_best_under_is_best_on_quality_where_vram_is_named_first():
    """The order of the objectives in the file does not make VRAM the quality."""
    trials = [record(0, perplexity=4.0, peak_vram_gb=4.0), record(1, perplexity=3.0, peak_vram_gb=6.0)]
    table = study(*trials, objectives=["peak_vram_gb", "perplexity"])
    assert [trial.number for trial in best_under(table, "8GB")] == [1]


def test_best_under_keeps_the_limits_of_the_file():
    """A trial outside the file's constraints is not the best under any size."""
    trials = [record(0, perplexity=4.0, peak_vram_gb=4.0), record(1, perplexity=3.0, peak_vram_gb=6.0)]
    table = study(*trials, constraints={"peak_vram_gb": "<= 5"})
    assert [trial.number for trial in best_under(table, "8GB")] == [0]


@pytest.mark.parametrize("size", ["", "GB", "-1GB", "8TB", "8 GBs", "8,5GB", "1e3MB", "nan"])
def test_sizes_that_cannot_be_read_are_refused(size):
    """A size in another form is refused with examples and what was given."""
    with pytest.raises(InvalidInput, match="such as 8GB or 500MB") as caught:
        best_under(study(), size)
    assert repr(size) in str(caught.value)


def test_best_under_is_a_member_of_the_front():
    """Of two trials of equal quality the one that needs less VRAM is the best, being on the front."""
    table = study(record(0, perplexity=3.0, peak_vram_gb=6.0), record(1, perplexity=3.0, peak_vram_gb=4.0))
    assert best_under(table, "8GB") == front_of(table)


def test_best_under_needs_vram_to_be_measured():
    """A study that did not measure VRAM refuses to say what fits."""
    table = study(record(0, perplexity=3.0, adapter_mb=1.0), objectives=["perplexity", "adapter_mb"])
    with pytest.raises(InvalidInput):
        best_under(table, "8GB")


def test_front_as_json_is_plain():
    """A member becomes its number, its parameters and the values of the objectives, in plain JSON."""
    [member] = json.loads(json.dumps(as_json([record(7, perplexity=3.5, peak_vram_gb=2, loss=1)], [QUALITY, VRAM])))
    assert member == {
        "trial": 7,
        "params": lora().model_dump(mode="json"),
        "values": {"perplexity": 3.5, "peak_vram_gb": 2.0},
    }
