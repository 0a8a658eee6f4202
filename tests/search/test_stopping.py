"""Which trials are stopped early."""

from __future__ import annotations

import numpy as np
from fault_support import said
from hypothesis import given
from hypothesis import strategies as st
from moocore import is_nondominated

from lorafront.search.model_stopping import Model, chance
from lorafront.search.optuna_searcher import OptunaSearcher, Workplace
from lorafront.search.progress import Silent
from lorafront.search.ray_trainable import LEAVE
from lorafront.search.run import make_rule
from lorafront.search.search_file import parse_search
from lorafront.search.stopping import Never, Rungs, best_first
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import StudyTable
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(POINTS)
def test_the_best_on_any_objective_goes_on(points):
    """A trial that is not beaten on some objective so far, so also the cheapest so far, is never stopped."""
    rule = Rungs()
    for number, values in enumerate(points):
        seen = np.array(points[: number + 1])
        if rule.stops(number, 64, values):
            assert (seen[number] > seen.min(axis=0)).all()


@given(POINTS)
def test_about_half_of_a_rung_goes_on(points):
    """Of trials that all lie on one front, only as many as the share allows go on, the extremes among them."""
    rule = Rungs()
    line = [(x, 100 - x) for x in sorted({x for x, _ in points})]
    stopped = [number for number, values in enumerate(line) if rule.stops(number, 64, values)]
    assert 0 not in stopped
    assert len(stopped) <= len(line) / 2


@given(POINTS)
def test_nobody_comes_before_those_who_beat_it(points):
    """The order is by non-dominated rank, holds every trial once, and begins with the front."""
    values = np.array(points, dtype=float)
    order = best_first(values)
    assert sorted(order) == list(range(len(points)))
    front = int(is_nondominated(values, keep_weakly=True).sum())
    assert set(order[:front]) == set(np.flatnonzero(is_nondominated(values, keep_weakly=True)))


def test_a_rung_without_all_objectives_ends_nothing() -> None:
    """What is measured at the last rung only, or was no number, keeps a trial out of the comparison."""
    search = parse_search({"name": "n", "model": "m", "data": {"path": "d"}, "early_stopping": "rungs"})
    ledger = StudyLedger(None, search, create=True)
    searcher = OptunaSearcher(ledger, Workplace(lambda *_: {}), Silent(), unfinished=[], rule=Rungs())
    whole = {"perplexity": 3.0, "peak_vram_gb": 1.0}
    for trial, values in enumerate([whole, {"perplexity": 9.0}, {**whole, "perplexity": None}, whole]):
        searcher.suggest(str(trial))
        assert searcher.hear(str(trial), said({trial: Report(16, values)})) == {}
    searcher.suggest("last")
    worse = {"perplexity": 9.0, "peak_vram_gb": 2.0}
    assert searcher.hear("last", said({4: Report(16, worse)}))[LEAVE] == [4]


def test_trials_are_compared_at_the_same_rung_only():
    """What others have reached after more rows does not stop a trial."""
    rule = Rungs()
    for number in range(8):
        assert not rule.stops(number, 64, (8 - number, 1 + number))
    assert not rule.stops(9, 32, (50, 50))
    assert rule.stops(10, 64, (50, 50))


def test_without_a_rule_nobody_is_stopped():
    """`off` trains every trial to the end."""
    assert not any(Never().stops(number, 64, (number, number)) for number in range(9))


RUNGS = (16, 32, 64)
QUALITY = {2: 60.0, 4: 50.0, 8: 44.0, 16: 41.0, 32: 40.0, 64: 39.5}  # perplexity at the end, by rank


def searched() -> tuple[StudyLedger, Model, dict[int, int]]:
    """(ledger, rule, trial by rank): the ranks 4 to 32 have been trained to the end, 2 and 64 have not begun."""
    search = parse_search(
        {
            "name": "n",
            "model": "m",
            "data": {"path": "d"},
            "space": {
                "rank": list(QUALITY),
                "alpha": {"ratio": 2},
                "modules": "attention",
                "quantization": "nf4",
                "dropout": 0.05,
                "bias": "none",
                "learning_rate": 1e-3,
            },
            "sampler": "grid",
            "early_stopping": "model",
        }
    )
    ledger = StudyLedger(None, search, create=True)
    rule = make_rule(ledger, StudyTable(search, (), {}, ()))
    assert isinstance(rule, Model)
    numbers = {}
    while (asked := ledger.ask()) is not None:
        numbers[asked[1].rank] = asked[0]
    for rank in (4, 8, 16, 32):
        for rows in RUNGS:
            values = reach(ledger, numbers[rank], rank, rows)
            assert rows == RUNGS[-1] or not rule.stops(numbers[rank], rows, values)  # too few to learn from
        ledger.tell(numbers[rank], Report(64, measured(rank, 64), Outcome.COMPLETE))
    return ledger, rule, numbers


def measured(rank: int, rows: int, worse: float = 1.0) -> dict[str, float]:
    return {"perplexity": worse * QUALITY[rank] * (1 + 32 / rows), "peak_vram_gb": 1 + rank / 100}


def reach(ledger: StudyLedger, number: int, rank: int, rows: int, worse: float = 1.0) -> list[float]:
    return ledger.record_rung(number, Report(rows, measured(rank, rows, worse)))


def test_the_model_ends_what_will_not_beat_a_cheaper_trial() -> None:
    """A costly trial that is far behind at its rung ends; with what its neighbours lead to expect it goes on."""
    ledger, rule, numbers = searched()
    assert rule.stops(numbers[64], 16, reach(ledger, numbers[64], 64, 16, worse=2.0))
    ledger, rule, numbers = searched()
    assert not rule.stops(numbers[64], 16, reach(ledger, numbers[64], 64, 16))


def test_the_model_lets_the_cheapest_go_on() -> None:
    """Nothing finished costs as little, so however bad it is, it may be on the front."""
    ledger, rule, numbers = searched()
    assert not rule.stops(numbers[2], 16, reach(ledger, numbers[2], 2, 16, worse=5.0))


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.01, 3))
def test_the_chance_falls_as_the_bound_does(low, mean, deviation):
    """It is a half at the mean, lies between 0 and 1, and is less for a lower bound."""
    assert chance(mean, mean, deviation) == 0.5
    assert 0 <= chance(low, mean, deviation) <= chance(low + 1, mean, deviation) <= 1
