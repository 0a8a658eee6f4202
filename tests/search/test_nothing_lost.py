"""The checker of faults finds each thing that it is there to find: a record of workers against a study that differs."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support import lora

from lorafront.search.nothing_lost import Line, judge, read_witness
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

RUNGS = (8, 16)
MEASURED = {"perplexity": 9.0, "peak_vram_gb": 1.0}
COMPLETE = Report(16, MEASURED, Outcome.COMPLETE)
OOM = Report(8, {}, Outcome.CUDA_OOM)
OTHER = Report(16, {**MEASURED, "perplexity": 8.0}, Outcome.COMPLETE)
NOON = datetime(2026, 1, 1, 12)  # noqa: DTZ001  # as Optuna stores times


def line(event: str, rows: int, number: int = 0, epoch: int = 1, report: Report | None = None) -> Line:
    return Line(event, number, epoch, rows, report.as_json() if report else {})


def record(number: int, result: Report | None = COMPLETE, **changes: Any) -> TrialRecord:
    state = "RUNNING" if result is None else "COMPLETE" if result.outcome is Outcome.COMPLETE else "FAIL"
    return TrialRecord(number, state, lora(**{"rank": 2**number, **changes}), 1, (), result, NOON, NOON)


def study(*trials: TrialRecord, budget: int = 1) -> StudyTable:
    search = parse_search({"name": "s", "model": "m", "data": {"path": "d"}, "budget": {"trials": budget}})
    return StudyTable(search, trials, {}, ())


WHOLE = [line("start", 0), line("ckpt", 8), line("ckpt", 16), line("final", 16, report=COMPLETE)]


def test_a_search_that_kept_its_promise_has_no_problem() -> None:
    """What workers noted and what the study has agree, also over a restart from the last checkpoint."""
    found = judge(WHOLE, study(record(0)), RUNGS)
    assert (found.problems, found.restarts, found.reworked) == ((), 0, 0)
    restarted = [*WHOLE[:2], line("start", 8, epoch=2), *(replace(old, epoch=2) for old in WHOLE[2:])]
    found = judge(restarted, study(record(0)), RUNGS)
    assert (found.problems, found.restarts, found.reworked) == ((), 1, 8)


@pytest.mark.parametrize(
    ("lines", "table", "kind", "words"),
    [
        (WHOLE, study(record(1)), "lost", "finished (complete) and is not recorded"),
        (WHOLE, study(record(0, None), record(1)), "lost", "finished (complete) and is not recorded"),
        (WHOLE, study(record(0, OTHER)), "lost", "is recorded as"),
        ([*WHOLE, line("start", 0, epoch=2)], study(record(0)), "doubled", "start in epoch 2"),
        ([*WHOLE, WHOLE[-1]], study(record(0)), "doubled", "final in epoch 1"),
        (WHOLE, study(record(0), record(1, rank=1), budget=2), "doubled", "counts 2 times"),
        ([*WHOLE[:2], line("start", 0, epoch=2)], study(record(0)), "wrong", "went on from 0 rows"),
        (WHOLE, study(record(0), record(1, None)), "wrong", "trial 1 was left running"),
        (WHOLE, study(record(0), budget=2), "wrong", "1 trials count, the budget is 2"),
        (WHOLE, study(record(0, OOM)), "wrong", "the front is []"),
    ],
)  # fmt: skip
def test_each_broken_promise_is_found(lines: list[Line], table: StudyTable, kind: str, words: str) -> None:
    """Each is named: lost, changed, doubled, thrown away, left running, another budget, another front."""
    assert any(words in problem for problem in getattr(judge(lines, table, RUNGS), kind))


def test_what_is_allowed_is_no_problem() -> None:
    """A second attempt after running out of memory, and a worker of an older epoch that nobody hears, break nothing."""
    again = [line("start", 0), line("final", 8, report=OOM), *WHOLE]
    assert judge(again, study(record(0)), RUNGS).problems == ()
    newer = [replace(old, epoch=2) for old in WHOLE]
    zombie = [*WHOLE[:2], line("start", 8, epoch=2), *newer[2:], *WHOLE[2:]]
    assert judge(zombie, study(record(0)), RUNGS).problems == ()


def test_a_torn_line_is_no_event(tmp_path: Path) -> None:
    """The line that a kill cut short is left out, the others are read."""
    file = tmp_path / "witness.jsonl"
    file.write_text('{"event": "start", "folder": "/r/s/trials/00003/epoch-2", "rows": 8, "pid": 1}\n{"event": "ck')
    (found,) = read_witness(file)
    assert (found.event, found.number, found.epoch, found.rows) == ("start", 3, 2, 8)
