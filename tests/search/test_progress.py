"""What is shown while a search runs."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console
from support import lora

from lorafront.search.progress import LiveTable, PlainLines, time_left
from lorafront.search.search_file import parse_search
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

SEARCH = parse_search({"name": "shown", "model": "m", "data": {"path": "d"}, "budget": {"trials": 4}})


def report(rows: int, perplexity: float, peak: float, outcome: Outcome | None = None, error: str = "") -> Report:
    return Report(rows, {"perplexity": perplexity, "peak_vram_gb": peak}, outcome, error)


def test_plain_lines_say_what_happens_and_what_is_left() -> None:
    """Start, rung, end and failure are one line each, with the count and the time left."""
    lines: list[str] = []
    seen = PlainLines(lines.append, clock=itertools.count(step=10).__next__)
    seen.begun(SEARCH, (16, 32), 0)
    seen.started(0, lora())
    seen.reported(0, report(16, 20.0, 1.5))
    seen.reported(0, report(32, 10.0, 1.5, Outcome.COMPLETE))
    seen.reported(1, Report(0, {}, Outcome.CUDA_OOM, "Traceback\nOutOfMemoryError: 2 GiB"))
    assert lines[1].startswith("trial 0 starts: r4 a8 attention bf16")
    assert "at 16 of 32 rows: perplexity 20.000, peak VRAM 1.5 GiB" in lines[2]
    assert lines[3].endswith("finished at full fidelity [1/4, 30 s left]")
    assert "ran out of GPU memory: OutOfMemoryError: 2 GiB [2/4" in lines[4]
    seen.extended(parse_search({"name": "shown", "model": "m", "data": {"path": "d"}, "budget": {"trials": 9}}))
    seen.reported(2, Report(20, {}, paused=True))
    seen.reported(3, report(32, 10.0, 1.5, Outcome.COMPLETE))
    assert lines[5] == "the budget has grown: 9 trials"
    assert lines[6].endswith("at 20 of 32 rows; paused")
    assert "[3/9" in lines[7]


def test_live_table_shows_running_front_and_failures_in_80_columns() -> None:
    """The table names running trials, the front so far and how others ended, and fits a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    table = LiveTable(console, clock=itertools.count().__next__)
    table.begun(SEARCH, (16, 32), 0)
    try:
        for number, (perplexity, outcome) in enumerate(
            [(10.0, Outcome.COMPLETE), (12.0, Outcome.COMPLETE), (99.0, Outcome.DIVERGED)]
        ):
            table.started(number, lora(modules="attention+mlp", rank=64, alpha=128))
            table.reported(number, report(32, perplexity, 1.0 + number, outcome))
        table.started(3, lora())
        table.started(4, lora())
        table.reported(4, Report(20, {}, paused=True))
        table.said("a note")
        with console.capture() as captured:
            console.print(table.render())
    finally:
        table.ended()
    shown = captured.get()
    assert "3/4 trials: 2 running, 2 finished, 1 stopped, 0 failed" in shown.replace("\n", " ")
    rows = {line.split()[0]: line for line in shown.splitlines() if line.split()[:1] and line.split()[0].isdigit()}
    assert "front so far" in rows["0"]
    assert "complete" in rows["1"]
    assert "diverged" in rows["2"]
    assert "started" in rows["3"]
    assert "paused" in rows["4"]
    assert "a note" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_hours_of_a_budget_bound_the_time_left() -> None:
    """Both ways of showing a run say so before a trial has ended."""
    search = parse_search({**SEARCH.model_dump(), "budget": {"trials": 4, "hours": 0.5}})
    lines: list[str] = []
    seen = PlainLines(lines.append, clock=itertools.count(step=60).__next__)
    seen.begun(search, (16,), 0)
    seen.reported(0, report(16, 9.0, 1.0, Outcome.COMPLETE))
    assert lines[-1].endswith("[1/4, 3 min left]")
    table = LiveTable(Console(file=io.StringIO(), width=80), clock=itertools.count(step=60).__next__)
    table.begun(search, (16,), 0)
    console = Console(file=io.StringIO(), width=80)
    console.print(table.render())
    table.ended()
    assert "at most" in console.file.getvalue()


def test_a_live_table_draws_before_the_search_begins() -> None:
    """That it is being prepared, and for how long."""
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    table = LiveTable(console, clock=itertools.count().__next__).open()
    with console.capture() as captured:
        console.print(table.render())
    table.ended()
    assert captured.get().startswith("checking model, data and machine, starting workers: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((10, 0, 5), "time left unknown"),
        ((10, 2, 4), "20 s left"),
        ((600, 1, 3), "30 min left"),
        ((10, 5, 0), "the last ones"),
        ((600, 1, 3, 60), "60 s left"),
        ((600, 0, 3, 7200), "at most 2.0 h left"),
        ((600, 1, 3, -5), "0 s left"),
    ],
)
def test_time_left(arguments: tuple[float, ...], text: str) -> None:
    """The estimate is the pace so far times what remains, or what the budget leaves, in the unit that suits it."""
    assert time_left(*arguments) == text
