"""The user's own recipe in a search: it runs first and to the end, and the front is compared with it."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support import TINY_LLAMA, lora

from lorafront.search.baseline import baseline_of, differences, standing, with_differences
from lorafront.search.front import as_json, front_of
from lorafront.search.paths import RootPaths
from lorafront.search.preflight import check
from lorafront.search.report import as_markdown
from lorafront.search.run import make_rule, run_search
from lorafront.search.search_file import SearchFile, parse_search, read_search_file
from lorafront.search.start_points import BASELINE, Start, Surroundings, starts
from lorafront.search.stopping import Never, Rungs, Sparing
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.search.tables import baseline_lines, front_table, summary, trial_rows
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.lora import LoraSpace, resolve
from lorafront.spaces.start_points import StartPoint, StartPoints, overlap_of_groups
from lorafront.trainables.config import TrainingConfig
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

NOW = datetime(2025, 1, 1, tzinfo=UTC)
DEFAULTS = TrainingConfig(rows=8).defaults()
OWN = lora(rank=2)


def search_of(**sections: Any) -> SearchFile:
    return parse_search({"name": "s", "model": "m", "data": {"path": "d"}, "baseline": {"rank": 16}, **sections})


def record(number: int, rank: int, outcome: Outcome = Outcome.COMPLETE, **measured: float) -> TrialRecord:
    state = "COMPLETE" if outcome is Outcome.COMPLETE else "FAIL"
    return TrialRecord(number, state, lora(rank=rank), 1, (), Report(64, measured, outcome), NOW, NOW)


def table_of(*trials: TrialRecord, search: SearchFile | None = None) -> StudyTable:
    """A study whose baseline is the configuration of rank 2."""
    start = Start(BASELINE, {}, own=True, fingerprint=OWN.fingerprint)
    return StudyTable(search or search_of(), trials, {}, (), starts=(start,))


def scored(number: int, rank: int, perplexity: float, vram: float) -> TrialRecord:
    return record(number, rank, perplexity=perplexity, peak_vram_gb=vram)


def test_a_baseline_outside_the_space_is_an_error_at_its_line(tmp_path: Path) -> None:
    """With the column of the key, what was found and what there is; so are unknown keys and values that are none."""
    text = "name: n\nmodel: m\ndata: {path: d}\nspace: {rank: [4, 8]}\nbaseline:\n"
    file = tmp_path / "search.yaml"
    for said, place in (
        ("  rank: 16\n", "search.yaml:6:3  baseline.rank: rank 16 is not in the space, which has 4, 8 (space.rank)"),
        ("  alpha: {ratio: 9}\n", "search.yaml:6:3  baseline.alpha: alpha / rank 9 is not in the space"),
        ("  batch_size: 3\n", "search.yaml:6:3  baseline.batch_size: batch size 3 is not in the space"),
        ("  rnak: 8\n", "search.yaml:6:3  baseline.rnak: unknown key. Did you mean 'rank'?"),
        ("  rank: 0\n", "search.yaml:6:3  baseline.rank: must be >= 1 (got 0)"),
        ("  - rank: 8\n", "search.yaml:5:1  baseline: must be a mapping"),
    ):
        file.write_text(text + said)
        with pytest.raises(InvalidInput) as caught:
            read_search_file(file)
        assert place in str(caught.value)


def around(**changes: Any) -> Surroundings:
    place = {"breaks": lambda _: "", **changes}
    return Surroundings(LoraSpace(), DEFAULTS, overlap_of_groups, lambda lora: lora, **place)


def test_the_baseline_is_tried_before_all_others() -> None:
    """Before the shipped points and the user's others, once where it is one of them, and however small the budget."""
    chosen = StartPoints.model_validate({"points": [{"rank": 4}, {"rank": 8}]})
    own = StartPoint(rank=8)
    found = starts(chosen, around(), 8, own)
    assert [start.label for start in found.points] == [
        "baseline", "recommended default", "6-8 GB", "start_points[0]"
    ]  # fmt: skip
    assert all(start.fingerprint for start in found.points)
    assert [start.label for start in starts(chosen, around(), 1, own).points] == ["baseline", "start_points[0]"]
    assert starts(chosen, around(), 8) == starts(chosen, around(), 8, None)


def test_a_baseline_may_break_a_limit_but_not_the_memory_of_the_machine() -> None:
    """What it reaches without the limit is what the limit costs; a configuration that nothing can train is an error."""
    found = starts(StartPoints(), around(breaks=lambda _: "peak_vram_gb 14 breaks peak_vram_gb <= 8"), 8, OWN_POINT)
    assert [start.label for start in found.points] == ["baseline"]
    assert found.notes[0].startswith("the baseline is on no front: peak_vram_gb 14 breaks")
    full = starts(StartPoints(), around(too_large=lambda _: "needs 80 GiB"), 8, OWN_POINT)
    assert [str(problem) for problem in full.problems] == ["baseline: is in vain: needs 80 GiB"]


OWN_POINT = StartPoint(rank=16)


def test_the_baseline_is_the_first_trial_and_found_again(tmp_path: Path) -> None:
    """By configuration, by whoever opens the study; it is in the list of starts under its label."""
    search = search_of()
    [first, *_] = starts(search.start_points, around(), 8, search.baseline).points
    ledger = StudyLedger(tmp_path / "study.db", search, create=True)
    ledger.keep_starts([first])
    number, configuration = ledger.ask()
    other, _ = ledger.ask()
    assert (number, configuration) == (0, resolve(first.params, search.training.defaults()))
    assert [ledger.is_baseline(n) for n in (number, other)] == [True, False]
    again = StudyLedger(tmp_path / "study.db", search, create=False)
    assert [again.is_baseline(n) for n in (number, other)] == [True, False]


def test_early_stopping_spares_the_baseline_alone() -> None:
    """Whatever the rule says, it goes on; others are compared with it as without it."""
    worse = [(1.0 + n, 1.0 + n) for n in range(4)]
    rule, plain = Sparing(Rungs(), lambda number: number == 2), Rungs()
    told = [(rule.stops(n, 16, v), plain.stops(n, 16, v)) for n, v in enumerate(worse)]
    assert [spared for spared, _ in told] == [False, True, False, True]
    assert [stopped for _, stopped in told] == [False, True, True, True]


@pytest.mark.parametrize("early_stopping", ["off", "rungs", "model"])
def test_a_search_without_a_baseline_keeps_its_rule(early_stopping: str) -> None:
    """Nothing is wrapped around it, so replays of such searches decide as they did."""
    plain = search_of(baseline=None, early_stopping=early_stopping)
    rule = make_rule(StudyLedger(None, plain, create=True), StudyTable(plain, (), {}, ()))
    assert not isinstance(rule, Sparing)
    own = search_of(early_stopping=early_stopping)
    assert isinstance(make_rule(StudyLedger(None, own, create=True), StudyTable(own, (), {}, ())), Sparing)
    assert not any(Never().stops(n, 8, (n, n)) for n in range(3))


def test_who_beats_the_baseline_is_said() -> None:
    """Members better in everything, and members equal in something, each by number; else that it is on the front."""
    own = scored(0, 2, 4.0, 8.0)
    table = table_of(own, scored(1, 4, 3.0, 6.0), scored(2, 8, 3.5, 5.0), scored(3, 16, 2.0, 9.0))
    found = standing(table)
    assert (found.on_front, found.beaten, found.matched) == (False, (1, 2), ())
    assert baseline_lines(table) == [
        "baseline trial 0: perplexity 4.000, peak VRAM 8 GiB; beaten in both by trials 1, 2"
    ]  # fmt: skip
    level = table_of(own, scored(1, 4, 3.0, 8.0))
    assert baseline_lines(level)[0].endswith("; beaten in one and equal in the other by trial 1")
    assert baseline_lines(table_of(own, scored(1, 4, 3.0, 9.0)))[0].endswith("; on the front")
    limited = table_of(own, scored(1, 4, 4.5, 5.0), search=search_of(constraints={"peak_vram_gb": "<= 6"}))
    assert baseline_lines(limited)[0].endswith("; breaks a limit: peak_vram_gb 8 breaks peak_vram_gb <= 6")


def test_a_baseline_that_did_not_come_to_the_end_is_said() -> None:
    """It has not begun, runs, or failed for a reason; nothing is compared with it then."""
    failed = table_of(record(0, 2, Outcome.CUDA_OOM), scored(1, 4, 3.0, 6.0))
    assert baseline_lines(failed) == ["baseline trial 0: ran out of GPU memory; nothing is compared with it"]
    running = table_of(TrialRecord(0, "RUNNING", OWN, 1, (), None, NOW, None))
    assert baseline_lines(running) == ["baseline trial 0: running; nothing is compared with it"]
    assert baseline_lines(table_of()) == ["baseline: not begun"]
    for table in (failed, running, table_of()):
        assert standing(table) is None
        assert with_differences(table, [{"trial": 1}]) == [{"trial": 1}]


def test_differences_are_in_per_cent_or_in_the_unit() -> None:
    """Perplexity in per cent of the baseline's, memory in GiB; in the terms of `pareto --json` both."""
    table = table_of(scored(0, 2, 4.0, 8.0), scored(1, 4, 3.0, 6.0))
    objectives = table.search.objective_list
    assert differences(table.trials[1], table.trials[0], objectives) == {"perplexity": -25.0, "peak_vram_gb": -2.0}
    [shown] = json.loads(json.dumps(with_differences(table, as_json(front_of(table), objectives))))
    assert shown["to_baseline"] == {
        "trial": 0, "difference": {"perplexity": -1.0, "peak_vram_gb": -2.0}, "percent": {"perplexity": -25.0}
    }  # fmt: skip
    assert "| to baseline |" in as_markdown(table)
    assert "| -25.0%, -2 |" in as_markdown(table)
    assert [row.get("baseline") for row in trial_rows(table)] == [True, None]
    assert baseline_lines(table)[0] in summary(table)


POINTS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8)


@given(POINTS)
def test_the_baseline_is_on_the_front_or_beaten_by_it(points: list[tuple[int, int]]) -> None:
    """Exactly one of both, and whoever is named really is better."""
    table = table_of(*(scored(n, 2 + n, float(p), float(v)) for n, (p, v) in enumerate(points)))
    found = standing(table)
    assert found.on_front == (not found.beaten and not found.matched)
    for number in found.beaten:
        assert all(a < b for a, b in zip(points[number], points[0], strict=True))
    for number in found.matched:
        assert all(a <= b for a, b in zip(points[number], points[0], strict=True))
        assert points[number] != points[0]


@pytest.mark.slow
def test_a_baseline_is_trained_to_the_end_and_shown(ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """A recipe that early stopping would end at its first rung is trial 0 at full fidelity."""
    data = {
        "name": "mine", "model": str(TINY_LLAMA),
        "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
        "space": {"rank": [2, 4, 16], "alpha": {"ratio": 1}, "modules": ["query+value", "attention"],
                  "quantization": "bf16", "bias": "none", "dropout": 0.0,
                  "learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}},
        "training": {"rows": 32, "rungs": 3, "batch_size": 4}, "budget": {"trials": 5},
        "early_stopping": "rungs", "sampler": "random",
        "baseline": {"rank": 16, "alpha": 16, "modules": "attention", "learning_rate": 1e-6},
    }  # fmt: skip
    root = RootPaths(tmp_path)
    table = run_search(parse_search(data), root)
    own = baseline_of(table)
    assert (own.number, own.state, own.lora.learning_rate, own.lora.rank) == (0, "COMPLETE", 1e-6, 16)
    assert not standing(table).on_front
    assert standing(table).beaten
    prepared = check(parse_search(data), root, tmp_path)
    assert prepared.starts.points[0].label == "baseline"


def test_the_front_with_differences_fits_a_terminal() -> None:
    """No line is wider than 80 columns and nothing is cut, with long values and four objectives."""
    names = ["perplexity", "peak_vram_gb", "trainable_params", "adapter_mb"]
    for objectives in (names[:2], names):
        trials = [
            record(n, 2 + n, perplexity=123456.7 - n, peak_vram_gb=0.1234 + n, trainable_params=1e9, adapter_mb=1234.5)
            for n in range(3)
        ]
        table = table_of(*trials, search=search_of(objectives=objectives))
        console = Console(width=80, file=io.StringIO(), color_system=None)
        console.print(front_table(table, front_of(table)))
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines)
        assert "is it" in " ".join("".join(lines).split())
