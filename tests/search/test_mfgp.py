"""The arithmetic of the sampler `mfgp`, and what it proposes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moocore import hypervolume

from lorafront.search.history import Axis, Entry, History, Reader, axes_of, encode
from lorafront.search.learning_curve import remaining
from lorafront.search.mfgp import Beliefs, improvement, telling
from lorafront.search.search_file import parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.warm_start import Observation
from lorafront.spaces.parameters import Range
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report

UNIT = st.floats(0.01, 0.99)


def gained(front: np.ndarray, point: np.ndarray, reference: np.ndarray) -> float:
    """Hypervolume that a point adds, by brute force."""
    before = hypervolume(front, ref=reference) if len(front) else 0.0
    return float(hypervolume(np.vstack([front, point]), ref=reference) - before)


@pytest.mark.parametrize("objectives", [2, 3])
@given(data=st.data())
def test_a_certain_candidate_improves_by_the_volume_that_it_adds(objectives, data):
    """Without uncertainty the closed form is the exact gain in hypervolume, for two and more objectives."""
    point = st.lists(UNIT, min_size=objectives, max_size=objectives)
    front = np.array(data.draw(st.lists(point, max_size=5)), dtype=float).reshape(-1, objectives)
    candidate = np.array(data.draw(point))
    reference = np.ones(objectives)
    found = improvement(candidate[:1], np.zeros(1), candidate[None, 1:], front, reference)
    assert found[0] == pytest.approx(gained(front, candidate, reference), abs=1e-9)


def test_an_uncertain_candidate_improves_by_what_its_draws_add_on_average():
    """The closed form is the mean gain over draws of the quality, within the noise of 20,000 draws."""
    front = np.array([[0.2, 0.8], [0.5, 0.4], [0.7, 0.1]])
    reference, cost, mean, deviation = np.ones(2), 0.3, 0.55, 0.2
    draws = np.random.default_rng(0).normal(mean, deviation, 20_000)
    average = np.mean([gained(front, np.array([y, cost]), reference) if y < 1 else 0.0 for y in draws])
    found = improvement(np.array([mean]), np.array([deviation]), np.array([[cost]]), front, reference)
    assert found[0] == pytest.approx(average, rel=0.03)


def test_what_training_on_brings_is_learnt_from_trials_that_went_on():
    """From rung to rung it is the median difference of the trials that reached both."""
    trial = np.array([0, 0, 1, 1, 2, 0])
    rows = np.array([16.0, 32.0, 16.0, 32.0, 16.0, 64.0])
    value = np.array([5.0, 4.0, 6.0, 4.0, 9.0, 3.5])
    assert remaining(trial, rows, value) == pytest.approx({64.0: 0.0, 32.0: -0.5, 16.0: -2.0})


def test_axes_keep_order_where_values_have_one():
    """Ranks are even steps of a logarithm, nested module sets are ordered, other names are not."""
    assert Axis("rank", [4, 8, 16]).places == pytest.approx([0, 0.5, 1])
    assert not Axis("modules", ["query", "query+value", "attention"]).categorical
    assert Axis("modules", ["query", "value"]).categorical
    assert Axis("quantization", ["nf4", "int8"]).categorical
    rates = Axis("learning_rate", Range[float](low=1e-4, high=1e-2, log=True))
    assert rates.place(1e-3) == pytest.approx(0.5)


def test_it_finds_a_better_front_than_it_began_with(tmp_path: Path):
    """On the toy, twenty trials that all differ hold a fifth more hypervolume than the first five."""
    search = parse_search(
        {
            "name": "n",
            "model": "m",
            "data": {"path": "d"},
            "sampler": "mfgp",
            "start_points": {"recommended": False},
            "space": {
                "rank": [4, 8, 16, 32],
                "alpha": {"ratio": 2},
                "modules": ["query", "attention"],
                "quantization": ["nf4", "int8", "bf16"],
                "dropout": 0.05,
                "bias": "none",
                "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
            },
        }
    )
    ledger = StudyLedger(tmp_path / "study.db", search, create=True)
    points, encoded = [], set()
    for _ in range(20):
        number, lora = ledger.ask() or pytest.fail("the space is not exhausted")
        session = ToySession(lora)
        for rows in (32, 64):
            session.train(rows)
            report = Report(rows, session.evaluate(), Outcome.COMPLETE if rows == 64 else None)
            ledger.record_rung(number, report)
        ledger.tell(number, report)
        points.append([np.log(report.measurements["perplexity"]), report.measurements["peak_vram_gb"]])
        encoded.add(tuple(encode(lora, axes_of(search.space))))
    reference = np.max(points, axis=0) + 0.1
    assert len(encoded) == 20
    assert hypervolume(np.array(points), ref=reference) > 1.2 * hypervolume(np.array(points[:5]), ref=reference)


def test_what_is_measured_at_the_end_only_holds_no_question_up(tmp_path: Path):
    """While no trial has reached the end, where a function of the user's is called, it still proposes."""
    search = parse_search(
        {
            "name": "n",
            "model": "m",
            "data": {"path": "d"},
            "sampler": "mfgp",
            "start_points": {"recommended": False},
            "objectives": ["perplexity", "my_metrics:length"],
        }
    )
    ledger = StudyLedger(tmp_path / "study.db", search, create=True)
    for _ in range(6):
        number, _lora = ledger.ask() or pytest.fail("the space is not exhausted")
        ledger.record_rung(number, Report(32, {"perplexity": 9.0 + number}))
    assert len(ledger.running()) == 6


def test_of_too_many_observations_the_front_stays():
    """High rungs are kept first, the front's among them before others, and the rest is spread over the whole study."""
    final = [3 + abs(i - 150) / 50 for i in range(300)]
    entries = [Entry(i, [i / 300], [(8, 5.0), (16, final[i])], [1 - i / 300], final[i]) for i in range(300)]
    history = History(entries, axes=1, objectives=2)
    kept = telling(history, 200)
    assert len(set(kept.tolist())) == 200
    assert (history.rows[kept] == 16).all()
    trials = history.trial[kept]
    assert set(range(150, 300)) <= set(trials.tolist())
    assert np.ptp(trials[trials < 150]) > 100
    assert (telling(history, 600) == np.arange(600)).all()


def test_one_rung_is_full_fidelity():
    """Where trials report at the end only, the process says of what it has seen what was measured there."""
    final = [3 + abs(i - 6) / 4 for i in range(12)]
    entries = [Entry(i, [i / 12], [(64, final[i])], [1 - i / 12], final[i]) for i in range(12)]
    history = History(entries, axes=1, objectives=2)
    mean, _ = Beliefs(history, [Axis("rank", list(range(1, 13)))]).at_full(history.configurations)
    assert mean == pytest.approx(final, abs=0.1)


def test_imported_results_stand_at_full_fidelity(tmp_path: Path):
    """A first rung here is not compared with results of an earlier search, which were measured at the end."""
    search = parse_search({"name": "n", "model": "m", "data": {"path": "d"}, "space": {"rank": [4, 8], "bias": "none"}})
    ledger = StudyLedger(tmp_path / "study.db", search, create=True)
    number, lora = ledger.ask() or pytest.fail("the space is not exhausted")
    done = Report(64, {"perplexity": 5.0, "peak_vram_gb": 1.0}, Outcome.COMPLETE)
    params = ledger.view.trial(number).params
    ledger.keep_observations([Observation("other trial 0", lora, params, done, repeatable=False)])
    ledger.record_rung(number, Report(8, {"perplexity": 9.0, "peak_vram_gb": 1.0}))
    history = Reader(search, axes_of(search.space)).read(ledger.view.trials)
    assert sorted(history.rows) == [8, 64]
    assert history.full == 64
