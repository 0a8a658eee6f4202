"""What is said of a search: only what its trials support, in words and for programs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html import escape

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from made_up_search import SPACE, Truth, made_up_file, made_up_search

from lorafront.search.contrasts import Interval
from lorafront.search.finding_words import WORTH_NAMING, change, more, size
from lorafront.search.findings import (
    AGAINST,
    MATTER,
    RATES,
    SPEED,
    Findings,
    as_json,
    contradicted,
    findings,
)
from lorafront.search.known_defaults import CLAIMS
from lorafront.search.report import as_html, as_markdown
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.objectives import OBJECTIVES, second_set_loss
from lorafront.trainables.outcome import Outcome

CLEAR = Truth(capacity=0.5, quantized=0.15, noise=0.005)
PERPLEXITY, ACCURACY = OBJECTIVES["perplexity"], OBJECTIVES["accuracy"]


@pytest.fixture(scope="module")
def clear() -> StudyTable:
    """Ninety trials with little noise, in which rank gains much and 4 bits lose much."""
    return made_up_search(4, 90, CLEAR)


@pytest.fixture(scope="module")
def found(clear: StudyTable) -> Findings:
    return findings(clear)


def of(found: Findings, title: str) -> list[dict]:
    return [one.data for one in found.found if one.title == title]


def test_each_doubling_of_the_rank_says_what_it_gained_and_cost(found: Findings) -> None:
    """Less loss for more parameters, by as much as they have; with the trials of both sides."""
    steps = [data for data in of(found, "Rank") if "verdict" in data]
    assert (8, 16, "better") in [(data["before"], data["after"], data["verdict"]) for data in steps]
    for data in steps:
        assert data["difference"]["low"] < data["difference"]["middle"] < data["difference"]["high"] < WORTH_NAMING
        assert min(data["trials"]) >= 3
        cost = data["trainable_params_difference"]
        assert cost["low"] > 0
        ratio = data["after"] / data["before"]
        assert 1000 * data["before"] * (ratio - 1) * 2 < cost["middle"] < 1000 * data["before"] * (ratio - 1) * 13
    says = next(one.says for one in found.found if one.data.get("after") == 16)
    assert says.startswith("rank 8 to 16: perplexity ")
    assert "lower" in says
    assert "trainable parameters more" in says


def test_returns_that_diminish_are_said_to(found: Findings) -> None:
    """The truth falls with the root of the rank."""
    assert any(data.get("diminishing") for data in of(found, "Rank"))


def test_quantization_is_compared_with_sixteen_bits(found: Findings) -> None:
    """What NF4 lost, what it saved, and that published studies say otherwise."""
    data = next(data for data in of(found, "Quantization") if data["after"] == "nf4")
    assert (data["before"], data["verdict"]) == ("bf16", "worse")
    assert data["difference"]["low"] < CLEAR.quantized < data["difference"]["high"]
    assert data["peak_vram_gb_difference"]["middle"] == pytest.approx(-1.5, abs=0.05)
    assert any(data.get("after") == "nf4" for data in of(found, AGAINST))
    assert any("more rank than 16 brings little (Dettmers" in one.says for one in found.found)


def test_modules_say_what_they_gained_per_parameter(found: Findings) -> None:
    """Per as many as stand in their number."""
    says = [one.says for one in found.found if one.title == "Modules"]
    assert any(" per 1" in line for line in says)


def test_without_effects_no_effect_is_stated() -> None:
    """Differences are not worth naming, or nothing is said of them."""
    none = findings(made_up_search(6, 90, Truth(capacity=0.0, quantized=0.0, noise=0.003)))
    verdicts = [
        data["verdict"]
        for title in ("Rank", "Modules", "Quantization")
        for data in of(none, title)
        if "verdict" in data
    ]
    assert set(verdicts) == {"no difference"}
    enough = [data["enough"] for data in of(none, "Rank") if "enough" in data]
    assert enough == [4]
    assert not [data for data in of(none, AGAINST) if data.get("contrast") in {"rank", "quantization"}]


def test_a_search_of_few_trials_says_nothing() -> None:
    """And why."""
    few = findings(made_up_search(0, 8, CLEAR))
    assert few.found == ()
    assert few.about == "too few trials for contrasts"


def test_a_best_learning_rate_at_an_edge_asks_for_a_wider_range() -> None:
    """Here the best is five times the highest that was searched; in the middle of the range nothing is said."""
    high = findings(made_up_search(3, 60, replace(CLEAR, best=-1.3, curvature=0.3)))
    assert [data["edge"] for data in of(high, RATES)] == ["upper"]
    assert not of(findings(made_up_search(3, 60, CLEAR)), RATES)
    assert any(data["claim"] == "learning_rate" for data in of(high, AGAINST))


def test_speed_is_said_only_where_trials_were_timed_alone(clear: StudyTable, found: Findings) -> None:
    """By a search whose objectives ask for it, of trials in processes of their own."""
    assert not of(found, SPEED)
    timed = replace(clear, search=made_up_file(objectives=["perplexity", "train_seconds"]))
    (data,) = of(findings(timed), SPEED)
    assert data["fastest"] == "bf16"
    assert list(data["times"]) == ["nf4", "int8"]
    assert data["times"]["nf4"]["low"] < 100 / 80 < data["times"]["nf4"]["high"]
    packed = tuple(_packed(trial) for trial in timed.trials)
    assert not of(findings(replace(timed, trials=packed)), SPEED)


def _packed(trial: TrialRecord) -> TrialRecord:
    assert trial.result is not None
    return replace(trial, result=replace(trial.result, measurements={**trial.result.measurements, "engine": "packed"}))


def test_one_learning_rate_for_all_is_said() -> None:
    """Where it was not searched, nothing was tuned."""
    table = made_up_search(0, 40, CLEAR, space={**SPACE, "learning_rate": 1e-3})
    assert "at the one learning rate of the search" in findings(table).about


def test_without_quality_there_is_nothing_to_compare_by(clear: StudyTable) -> None:
    """As for a recommendation."""
    with pytest.raises(InvalidInput, match="no objective of quality"):
        findings(replace(clear, search=made_up_file(objectives=["peak_vram_gb", "adapter_mb"])))


def test_programs_are_told_what_people_are(found: Findings) -> None:
    """Every sentence, and plain numbers."""
    said = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert [one["says"] for one in said["findings"]] == [one.says for one in found.found]
    assert said["objective"] == "perplexity"
    shares = next(one["importance"] for one in said["findings"] if one["title"] == MATTER)
    assert max(shares, key=shares.__getitem__) == "learning_rate"
    assert "alpha" not in shares  # its ratio to the rank is searched


@given(ends=st.tuples(*[st.floats(-0.5, 0.5)] * 3).map(sorted))
def test_a_claim_is_contradicted_only_by_a_whole_interval(ends: list[float]) -> None:
    """One that reaches into what is not worth naming contradicts nothing."""
    own = Interval(*ends)
    for claim in CLAIMS:
        if claim.expects == "better":
            assert contradicted(claim, own) == (own.low > -WORTH_NAMING)
        elif own.high >= -WORTH_NAMING and own.low <= WORTH_NAMING:
            assert not contradicted(claim, own)


def test_differences_are_said_in_the_units_of_people() -> None:
    """Perplexity in per cent, accuracy in points, another loss in nats; both ends on the side of the middle."""
    lower = Interval(math.log(0.9), math.log(0.95), math.log(0.98))
    assert change(PERPLEXITY, lower) == "perplexity 5.0 % lower (2.0 to 10 %)"
    assert change(ACCURACY, Interval(-0.04, -0.031, -0.02)) == "accuracy 3.1 points higher (2.0 to 4.0 points)"
    assert change(ACCURACY, Interval(0.02, 0.031, 0.04)) == "accuracy 3.1 points lower (2.0 to 4.0 points)"
    assert change(second_set_loss("wiki"), Interval(0.1, 0.2, 0.3)) == "loss on wiki 0.2 nats higher (0.1 to 0.3 nats)"
    assert (
        change(PERPLEXITY, Interval(-0.002, 0.0, 0.004)) == "no difference in perplexity worth naming (at most 0.4 %)"
    )
    assert more(-0.0412, "GiB") == "0.0412 GiB less"
    assert more(2_520_000, "trainable parameters") == "2.52 M trainable parameters more"
    assert more(-16_384, "trainable parameters") == "16,400 trainable parameters fewer"
    assert size(PERPLEXITY, math.log(0.55)) == "45 %"


SPACES = st.fixed_dictionaries(
    {
        "rank": st.sampled_from(
            [[4, 8, 16, 32, 64], {"low": 4, "high": 64}, {"low": 4, "high": 64, "log": True}, [4, 64]]
        ),
        "alpha": st.sampled_from(
            [{"ratio": [1, 2]}, {"absolute": [8, 16, 128]}, {"absolute": {"low": 4, "high": 128}}]
        ),
        "modules": st.sampled_from([list(SPACE["modules"]), ["mlp", "attention", "query+value"], "attention"]),
        "quantization": st.sampled_from([["nf4", "int8", "bf16"], ["int8", "nf4"], ["nf4", "fp4", "fp16", "fp32"]]),
        "dropout": st.sampled_from([0.0, {"low": 0.0, "high": 0.3}]),
        "bias": st.just("none"),
        "learning_rate": st.sampled_from([SPACE["learning_rate"], [1e-4, 1e-3, 1e-2], 1e-3]),
    }
)
ENDS = st.sampled_from(
    [Outcome.COMPLETE, Outcome.COMPLETE, Outcome.STOPPED, Outcome.DIVERGED, Outcome.USER_ERROR, None]
)


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(space=SPACES, ends=st.lists(ENDS, min_size=10, max_size=24), same=st.booleans(), seed=st.integers(0, 99))
def test_whatever_was_searched_and_however_trials_ended_something_can_be_said(space, ends, same, seed) -> None:
    """Ranges, absolute alpha, names without an order; trials that run, failed, diverged; equal results."""
    table = made_up_search(seed, len(ends), CLEAR, space=space, objectives=["accuracy", "peak_vram_gb"], task="seq_cls")
    trials = [_ended(trial, outcome, same=same) for trial, outcome in zip(table.trials, ends, strict=True)]
    found = findings(replace(table, trials=tuple(trials)))
    json.dumps(as_json(found), allow_nan=False)
    assert all(one.says and "perplexity" not in one.says for one in found.found)


def _ended(trial: TrialRecord, outcome: Outcome | None, *, same: bool) -> TrialRecord:
    """The trial with an accuracy for its perplexity, and with another end."""
    reached = trial.rungs[: 2 if outcome is Outcome.STOPPED else len(trial.rungs)]
    right = [0.5 if same else 1 / report.measurements["perplexity"] for report in reached]
    rungs = tuple(
        replace(report, measurements={**report.measurements, "accuracy": share})
        for report, share in zip(reached, right, strict=True)
    )
    if outcome is None:
        return replace(trial, state="RUNNING", rungs=rungs, result=None, ended=None)
    state = {Outcome.COMPLETE: "COMPLETE", Outcome.STOPPED: "PRUNED", Outcome.DIVERGED: "PRUNED"}.get(outcome, "FAIL")
    failed = outcome is Outcome.USER_ERROR
    result = replace(rungs[-1], outcome=outcome, measurements={} if failed else rungs[-1].measurements)
    return replace(trial, state=state, rungs=() if failed else rungs, result=result)


def test_a_report_has_every_finding_as_text(clear: StudyTable, found: Findings) -> None:
    """In HTML and Markdown, under their titles."""
    text, page = as_markdown(clear, None, found), as_html(clear, None, found)
    for one in found.found:
        assert f"### {one.title}" in text
        assert f"<h3>{one.title}</h3>" in page
        assert f"- {escape(one.says)}" in text
        assert f"<li>{escape(one.says).replace('&#x27;', '&#39;')}</li>" in page
