"""A replayed search: the simulated clock, the order of calls, what it costs, and what counts as reached."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from players import NEEDS, Arena, LorafrontPlayer, RapidFireRule, make_player
from replay import Replay
from search_quality import Run, Settings, corner, estimate, goals, ratio, simulate, start_rows, target
from synthetic_table import synthetic_table
from trial_table import TrialTable, read_table, write_table

from lorafront.spaces.errors import StateUnreadable
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report


@pytest.fixture(scope="module")
def table() -> TrialTable:
    return synthetic_table()


class Scripted:
    """Rows in order; stops the trials it is told to at the first rung; keeps what it was called with."""

    def __init__(self, rows: list[int], stopped: tuple[int, ...] = ()) -> None:
        self.rows, self.stopped, self.calls = list(rows), stopped, []

    def suggest(self, trial_id: str) -> int | None:
        row = self.rows.pop(0) if self.rows else None
        self.calls.append(("suggest", trial_id, row))
        return row

    def judge(self, trial_id: str, report: Report) -> bool:
        self.calls.append(("judge", trial_id, report.rows))
        return int(trial_id.removeprefix("trial-")) in self.stopped

    def complete(self, trial_id: str, report: Report) -> None:
        self.calls.append(("complete", trial_id, report.outcome))


def test_one_worker_takes_as_long_as_its_trials_together(table: TrialTable) -> None:
    """With one worker the cost at the end of each trial is the sum of the whole trainings so far."""
    ended = list(Replay(table, workers=1).play(Scripted([5, 9, 300])))
    assert [found.row for found in ended] == [5, 9, 300]
    assert [found.spent for found in ended] == pytest.approx(np.cumsum(table.full_seconds[[5, 9, 300]]))


def test_workers_share_the_clock(table: TrialTable) -> None:
    """With two workers the first to end is the shorter trial, and the other one's time so far is counted."""
    short, long = sorted((0, len(table) - 1), key=lambda row: table.full_seconds[row])
    first, second = Replay(table, workers=2).play(Scripted([long, short]))
    assert (first.row, second.row) == (short, long)
    assert first.spent == pytest.approx(2 * table.full_seconds[short])
    assert second.spent == pytest.approx(table.full_seconds[[long, short]].sum())


def test_calls_come_in_the_order_of_ray_tune(table: TrialTable) -> None:
    """Each rung is judged before the next begins; a stopped trial completes at its rung; then the next is asked for."""
    player = Scripted([0, 1], stopped=(0,))
    ended = list(Replay(table, workers=1).play(player))
    assert player.calls == [
        ("suggest", "trial-0", 0),
        ("judge", "trial-0", 32),
        ("complete", "trial-0", Outcome.STOPPED),
        ("suggest", "trial-1", 1),
        ("judge", "trial-1", 32),
        ("judge", "trial-1", 64),
        ("judge", "trial-1", 128),
        ("complete", "trial-1", Outcome.COMPLETE),
        ("suggest", "trial-2", None),
    ]
    first_rung = table.setup_seconds[0] + table.train_seconds[0, 0] + table.eval_seconds[0, 0]
    assert ended[0].spent == pytest.approx(first_rung)


def test_a_configuration_may_be_asked_for_ahead(table: TrialTable) -> None:
    """The next configuration is asked for while the worker is busy; what is trained and what it costs is the same."""
    player = Scripted([5, 9, 300])
    ended = list(Replay(table, workers=1, ahead=1).play(player))
    assert player.calls[:3] == [("suggest", "trial-0", 5), ("suggest", "trial-1", 9), ("judge", "trial-0", 32)]
    assert [found.spent for found in ended] == pytest.approx(np.cumsum(table.full_seconds[[5, 9, 300]]))


def test_a_trial_over_the_limit_costs_its_set_up(table: TrialTable) -> None:
    """What needs more memory than there is dies after its set-up; what needs less is not touched."""
    largest = int(table.peak_vram_gb.argmax())
    limit = float(table.peak_vram_gb[largest]) - 1e-9
    over, fine = Replay(table, workers=1, limit_gb=limit).play(Scripted([largest, 0]))
    assert (over.report.outcome, fine.report.outcome) == (Outcome.CUDA_OOM, Outcome.COMPLETE)
    assert over.spent == pytest.approx(table.setup_seconds[largest])


def test_a_training_that_diverged_ends_there(table: TrialTable) -> None:
    """A loss that is no number ends the trial at its rung as diverged."""
    loss = table.eval_loss.copy()
    loss[7, :, 1:] = math.nan
    (ended,) = Replay(replace(table, eval_loss=loss)).play(Scripted([7]))
    assert (ended.report.outcome, ended.report.rows) == (Outcome.DIVERGED, 64)


def test_a_table_is_read_as_it_was_written(table: TrialTable, tmp_path: Path) -> None:
    """Writing rounds to seven digits, after which reading and writing change nothing; NaN survives."""
    loss = table.eval_loss.copy()
    loss[3, 1, 2] = math.nan
    once, again = tmp_path / "once.json", tmp_path / "again.json"
    write_table(once, replace(table, eval_loss=loss))
    found = read_table(once)
    write_table(again, found)
    assert once.read_bytes() == again.read_bytes()
    assert found.configurations == table.configurations
    np.testing.assert_allclose(found.eval_loss, loss, rtol=1e-6)
    assert found.row_of(table.configurations[17]) == 17


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    """Another format is named in the refusal."""
    file = tmp_path / "other.json"
    file.write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(StateUnreadable, match="format 99"):
        read_table(file)


def test_a_row_is_found_by_what_a_sampler_draws(table: TrialTable) -> None:
    """The drawn values of a row lead back to it alone."""
    for row in (0, 123, len(table) - 1):
        assert table.find(**table.params(row)) == [row]


def test_the_target_is_the_area_of_the_front(table: TrialTable) -> None:
    """The hypervolume to reach is that of all configurations, the default's is a rectangle, the gap lies between."""
    default = start_rows(table)[0]
    goal = target(table, default, corner(table))
    loss, memory = goal.points[default]
    assert goal.default == pytest.approx((goal.reference[0] - loss) * (goal.reference[1] - memory))
    assert goal.volume(range(len(table))) == pytest.approx(goal.full)
    assert goal.default < goal.gap < goal.full
    for row in goal.front:
        assert not (goal.points < goal.points[row]).all(axis=1).any()


def test_every_simulated_search_has_a_world_of_its_own(table: TrialTable) -> None:
    """Each configuration has the whole curve of one trained seed; another seed draws others, the same one the same."""
    one, other = table.world(1), table.world(2)
    assert (one.eval_loss[:, 0, None] == table.eval_loss).all(axis=2).any(axis=1).all()
    assert (one.eval_loss != other.eval_loss).any()
    np.testing.assert_array_equal(one.eval_loss, table.world(1).eval_loss)


def test_a_limit_cuts_the_front(table: TrialTable) -> None:
    """With a limit only what is within it is on the front."""
    limit = float(np.median(table.peak_vram_gb))
    goal = target(table, start_rows(table)[0], corner(table, limit), limit)
    assert all(table.peak_vram_gb[row] <= limit for row in goal.front)


def test_the_recommended_default_starts(table: TrialTable) -> None:
    """The first start point is rank 16, alpha 32, attention, nf4, at the middle learning rate."""
    lora = table.configurations[start_rows(table)[0]]
    assert lora.label == "r16 a32 attention nf4"
    assert lora.learning_rate == 6e-3


def test_rapidfire_stops_what_most_of_the_living_dominate() -> None:
    """Two of two others that are better at the same rung stop a trial; one of two does not."""

    def result(loss: float, memory: float) -> dict[str, float]:
        return {"rows": 32, "perplexity": loss, "peak_vram_gb": memory}

    rule = RapidFireRule()
    for name in ("good", "better", "bad"):
        rule.started(name, 0)
    assert not rule.stops("good", result(20, 1))
    assert not rule.stops("bad", result(30, 2))
    rule.started("late", 0)
    assert not rule.stops("better", result(10, 1))
    assert rule.stops("late", result(31, 3))


@pytest.mark.parametrize("method", ["grid", "random", "rapidfire"])
def test_methods_without_a_model_reach_the_front(table: TrialTable, method: str) -> None:
    """Grid and random order train everything in the end; the cost at which they reach it is below the grid's."""
    run = simulate(table, method, 0, Settings("synthetic", workers=4, cap=1000))
    assert run.spent <= table.full_seconds.sum() * 1.001
    if method != "rapidfire":
        assert run.front <= run.spent
        assert run.gap <= run.spent
        assert run.stopped == 0


@pytest.mark.parametrize("method", ["optunasearch+asha2", "asha2", "moasha", "moasha-mended"])
def test_peers_play(table: TrialTable, method: str) -> None:
    """Peers train the start points first and stop what they would stop, each as its own library decides."""
    if method in NEEDS:
        pytest.importorskip(NEEDS[method])
    start = start_rows(table)
    ended = list(islice(Replay(table).play(make_player(method, Arena(table, start, seed=1))), 30))
    assert {found.row for found in ended if found.order < len(start)} == set(start)
    assert {found.report.outcome for found in ended} == {Outcome.COMPLETE, Outcome.STOPPED}


def test_what_is_over_a_limit_is_counted(table: TrialTable) -> None:
    """Random draws meet a limit that cuts off half of the space with about every second trial."""
    run = simulate(table, "random", 0, Settings("synthetic", workers=4, cap=1000, limit=0.5))
    assert 0.3 < run.over / run.trials < 0.7


def test_our_searcher_plays() -> None:
    """Our own searcher goes through a study in memory, the start points first, no configuration twice."""
    table = synthetic_table()
    start = start_rows(table)
    ended = []
    for found in Replay(table).play(make_player("tpe/off", Arena(table, start, seed=1))):
        ended.append(found)
        if len(ended) == 30:
            break
    assert {found.row for found in ended if found.order < len(start)} == set(start)
    assert len({found.row for found in ended}) == 30
    assert all(found.report.outcome is Outcome.COMPLETE for found in ended)


@pytest.mark.parametrize("rule", ["rungs", "model"])
def test_our_early_stopping_plays(table: TrialTable, rule: str) -> None:
    """What the rule stops ends at an early rung and is told so to the study; the cheapest trial goes to the end."""
    player = make_player(f"random/{rule}", Arena(table, start_rows(table), seed=1))
    assert isinstance(player, LorafrontPlayer)
    ended = list(islice(Replay(table).play(player), 40))
    stopped = [found for found in ended if found.report.outcome is Outcome.STOPPED]
    assert stopped
    assert all(found.report.rows < table.rungs[-1] for found in stopped)
    states = [trial.state.name for trial in player.searcher.ledger.study.trials]
    assert states.count("PRUNED") == len(stopped)
    cheapest = min(ended, key=lambda found: table.peak_vram_gb[found.row])
    assert cheapest.report.outcome is Outcome.COMPLETE


def test_goals_are_bounded_by_what_a_rival_spent() -> None:
    """A rival that never got there is taken to cost the cap; ours are compared with the best that did."""

    def runs(*costs: float) -> list[Run]:
        return [
            Run(seed, cost, cost, 0.0, trials=1, stopped=0, lost=0, over=0, asking=0.0)
            for seed, cost in enumerate(costs)
        ]

    found = {
        "random": runs(40.0, 40.0, 40.0),
        "optunasearch": runs(math.inf, math.inf, 50.0),
        "mfgp/off": runs(20.0, 20.0, 30.0),
    }
    assert goals(found, whole_grid=400.0, cap=100.0) == [
        "mfgp/off: 0.05 (0.05-0.07) of whole grid; goal 0.2: reached",
        "mfgp/off: at most 0.20 (0.20-0.60) of optunasearch; goal 0.5: reached",
        "mfgp/off: 0.50 (0.50-0.75) of the best peer, random; goal 0.7: reached",
    ]


def test_a_median_of_what_was_mostly_never_reached_is_infinite() -> None:
    """Infinity stands for never; a median over more than half of it is never, and no ratio is better for it."""
    assert estimate([1.0, 2.0, 3.0]).median == 2.0
    assert math.isinf(estimate([1.0, math.inf, math.inf]).median)
    assert ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).median == 0.5
    assert ratio([1.0, 2.0, 3.0], [math.inf] * 3).median == 0.0
    assert math.isinf(ratio([math.inf] * 3, [math.inf] * 3).median)
