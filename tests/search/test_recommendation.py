"""One configuration of a front: the best that fits, or where the front bends; with what its neighbours cost."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import lora

from lorafront.search.front import front_of
from lorafront.search.gpu_memory import CONTEXT
from lorafront.search.recommendation import as_json, knee, lines, need, recommend, tiers_table
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.errors import InvalidInput, NoFront
from lorafront.spaces.sizes import GIB
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

NOW = datetime(2025, 1, 1, tzinfo=UTC)


def study(*points: tuple[float, float], objectives: tuple[str, ...] = ("perplexity", "peak_vram_gb")) -> StudyTable:
    """Trials that measured (perplexity, peak VRAM in GiB), numbered from 0."""
    search = parse_search({"name": "n", "model": "m", "data": {"path": "d"}, "objectives": list(objectives)})
    trials = [
        TrialRecord(
            number, "COMPLETE", lora(rank=number + 1), 1, (),
            Report(64, {"perplexity": ppl, "peak_vram_gb": vram, "adapter_mb": 9.0 - number}, Outcome.COMPLETE),
            NOW, NOW,
        )
        for number, (ppl, vram) in enumerate(points)
    ]  # fmt: skip
    return StudyTable(search, tuple(trials), {}, ())


POINTS = st.lists(
    st.tuples(st.floats(1.5, 50).map(lambda x: round(x, 2)), st.floats(1, 40).map(lambda x: round(x, 2))),
    min_size=1, max_size=20,
)  # fmt: skip


@given(points=POINTS, gib=st.floats(2, 45))
def test_what_is_recommended_fits_and_nothing_that_fits_is_better(points, gib: float) -> None:
    """Its neighbours are the nearest members on either side: better for more memory, worse for less."""
    table, size = study(*points), int(gib * GIB)
    fitting = [trial for trial in table.trials if need(trial) <= size]
    if not fitting:
        with pytest.raises(NoFront, match="the smallest needs"):
            recommend(table, size)
        return
    found = recommend(table, size)
    best = min(trial.measurements["perplexity"] for trial in fitting)
    assert found.trial.measurements["perplexity"] == best
    assert need(found.trial) <= size
    quality, memory = (
        {t.number: t.measurements[name] for t in front_of(table)} for name in ("perplexity", "peak_vram_gb")
    )
    mine = found.trial.number
    larger, smaller = ([n for n in quality if sign * memory[n] > sign * memory[mine]] for sign in (1, -1))
    assert (found.better is None) == (not larger)
    assert (found.cheaper is None) == (not smaller)
    if found.better is not None:
        assert memory[found.better.number] == min(memory[n] for n in larger)
        assert found.better.measurements["perplexity"] < best
    if found.cheaper is not None:
        assert quality[found.cheaper.number] == min(quality[n] for n in smaller)
        assert need(found.cheaper) < need(found.trial)


@given(points=POINTS)
def test_each_tier_has_the_best_that_fits_its_largest_card(points) -> None:
    """And a larger card never has a worse one."""
    found = recommend(study(*points))
    losses = [math.inf if trial is None else trial.measurements["perplexity"] for _, trial in found.tiers]
    assert losses == sorted(losses, reverse=True)
    for (name, trial), size in zip(found.tiers, (6, 8, 12, 16), strict=False):
        within = [p for p, v in points if v * GIB + CONTEXT <= size * GIB]
        assert (trial.measurements["perplexity"] if trial else None) == min(within, default=None), name


def test_the_knee_is_where_the_next_saving_costs_most() -> None:
    """Scaled to the front's own ranges; a straight front and one of two points have none."""
    assert knee([(1.0, 10.0), (1.1, 4.0), (2.0, 3.0)]) == 1
    assert knee([(1.0, 10.0), (1.9, 9.0), (2.0, 3.0)]) is None  # bulges outwards
    assert knee([(1.0, 10.0), (2.0, 3.0)]) is None
    found = recommend(study((3.0, 20.0), (3.1, 8.0), (6.0, 7.5), (9.0, 7.0)))
    assert (found.trial.number, found.knee) == (1, 1)
    assert "knee" in found.why


def test_people_and_programs_are_told_the_same() -> None:
    """The trial, why, what the neighbours cost; within 80 columns."""
    found = recommend(study((3.0, 20.0), (3.1, 8.0), (6.0, 4.0)), 12 * GIB)
    told = "\n".join(lines(found))
    assert found.trial.number == 1
    assert "the best perplexity of the front that fits in 12 GiB" in told
    assert "next better: trial 0" in told
    assert "+12 GiB: perplexity 3.000" in told
    assert "next cheaper: trial 2" in told
    assert max(map(len, told.splitlines())) <= 80
    said = as_json(found)
    assert (said["recommended"]["trial"], said["next_better"]["trial"], said["next_cheaper"]["trial"]) == (1, 0, 2)
    assert said["tiers"]["under 6 GB"]["trial"] == 2
    assert said["tiers"]["over 16 GB"]["trial"] == 0
    assert tiers_table(found).row_count == 5


def test_a_member_that_only_a_third_objective_keeps_is_nobodys_neighbour() -> None:
    """It is beaten in quality and memory."""
    table = study((3.0, 8.0), (4.0, 9.0), (5.0, 4.0), objectives=("perplexity", "peak_vram_gb", "adapter_mb"))
    assert {trial.number for trial in front_of(table)} == {0, 1, 2}
    found = recommend(table, 16 * GIB)
    assert (found.trial.number, found.better, found.cheaper and found.cheaper.number) == (0, None, 2)


def test_without_quality_or_a_front_nothing_is_recommended() -> None:
    """With a reason."""
    with pytest.raises(InvalidInput, match="no objective of quality"):
        recommend(study((3.0, 8.0), objectives=("peak_vram_gb", "adapter_mb")))
    with pytest.raises(NoFront, match="no feasible trial"):
        recommend(study())
