"""What a user sees while a search runs: a live table on a terminal, plain lines elsewhere.

Observers are told by the searcher, after the study has it. They keep their own small state and never touch the study.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorafront.search.front import undominated
from lorafront.search.search_file import SearchFile
from lorafront.search.tables import COMPACT, cells, trial_columns
from lorafront.search.waiting import Clock, spell
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.objectives import Objective
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report


class Observer(Protocol):
    """Hears of a trial's life."""

    def begun(self, search: SearchFile, rungs: tuple[int, ...], recorded: int) -> None:
        """The search starts, or goes on with so many trials recorded."""

    def extended(self, search: SearchFile) -> None:
        """The budget has grown."""

    def started(self, number: int, lora: LoraConfiguration) -> None:
        """A trial was handed to a worker."""

    def reported(self, number: int, report: Report) -> None:
        """A trial reached a rung, ended, or was paused."""

    def said(self, message: str) -> None:
        """Something that a user should know."""

    def ended(self) -> None:
        """Nothing more will come."""


class Silent:
    """An observer that shows nothing."""

    def begun(self, search: SearchFile, rungs: tuple[int, ...], recorded: int) -> None:
        """Nothing."""

    def extended(self, search: SearchFile) -> None:
        """Nothing."""

    def started(self, number: int, lora: LoraConfiguration) -> None:
        """Nothing."""

    def reported(self, number: int, report: Report) -> None:
        """Nothing."""

    def said(self, message: str) -> None:
        """Nothing."""

    def ended(self) -> None:
        """Nothing."""


class PlainLines:
    """One line per event, for logs and pipes."""

    def __init__(self, say: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        """Args: say: prints a line. clock: seconds."""
        self._say = say
        self._clock = clock
        self._labels: dict[int, str] = {}

    def begun(self, search: SearchFile, rungs: tuple[int, ...], recorded: int) -> None:
        """Name the search and its rungs."""
        self._start, self._rungs, self._budget, self._done = self._clock(), rungs, search.budget.trials, recorded
        self._objectives = search.objective_list
        self._already = recorded
        self._end = _end(search, self._start)
        self._say(f"search {search.name}: {self._budget} trials, rungs at {', '.join(map(str, rungs))} rows")

    def extended(self, search: SearchFile) -> None:
        """The new number of trials."""
        self._budget, self._end = search.budget.trials, _end(search, self._start)
        self._say(f"the budget has grown: {self._budget} trials")

    def started(self, number: int, lora: LoraConfiguration) -> None:
        """Its label."""
        self._labels[number] = lora.label
        self._say(f"trial {number} starts: {lora.label} lr {lora.learning_rate:.2g}")

    def reported(self, number: int, report: Report) -> None:
        """Its numbers, and the time left once one has ended."""
        line = f"trial {number} ({self._labels.get(number, '?')}) at {report.rows} of {self._rungs[-1]} rows"
        if report.measurements:
            line += f": {_numbers(report.measurements, self._objectives)}"
        if report.outcome is not None:
            self._done += report.outcome.counts
            line += f"; {report.outcome.value}"
            if report.error:
                line += f": {last_line(report.error)}"
            now = self._clock()
            done, remaining = self._done - self._already, self._budget - self._done
            left = time_left(now - self._start, done, remaining, self._end - now)
            line += f" [{self._done}/{self._budget}, {left}]"
        elif report.paused:
            line += "; paused"
        self._say(line)

    def said(self, message: str) -> None:
        """As it is."""
        self._say(message)

    def ended(self) -> None:
        """Nothing to close."""


@dataclass
class _Row:
    label: str
    rows: int = 0
    report: Report | None = None
    outcome: Outcome | None = None
    paused: bool = False


@dataclass
class LiveTable:
    """A table that is drawn again twice a second, from `open` or `begun` on."""

    console: Console
    clock: Clock = time.monotonic
    _rows: dict[int, _Row] = field(default_factory=dict)
    _messages: list[str] = field(default_factory=list)
    _live: Live | None = None
    _search: SearchFile | None = None

    def open(self) -> LiveTable:
        """Start drawing: that the search is being prepared."""
        self._start = self.clock()
        self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=2, transient=True)
        self._live.start()
        return self

    def begun(self, search: SearchFile, rungs: tuple[int, ...], recorded: int) -> None:
        """From now on there are trials to draw."""
        if self._live is None:
            self.open()
        self._search, self._rungs, self._already, self._start = search, rungs, recorded, self.clock()

    def extended(self, search: SearchFile) -> None:
        """Counted against from now on."""
        self._search = search
        self.said(f"the budget has grown: {search.budget.trials} trials")

    def started(self, number: int, lora: LoraConfiguration) -> None:
        """A new row."""
        self._rows[number] = _Row(lora.label)

    def reported(self, number: int, report: Report) -> None:
        """New numbers in a row."""
        row = self._rows.setdefault(number, _Row("?"))
        row.rows, row.outcome, row.paused = report.rows, report.outcome, report.paused
        row.report = report if report.measurements else row.report

    def said(self, message: str) -> None:
        """Shown below the table, the newest three."""
        self._messages = [*self._messages, message][-3:]

    def ended(self) -> None:
        """Stop drawing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def render(self) -> Group:
        """The picture of this moment."""
        search = self._search
        if search is None:
            passed = spell(self.clock() - self._start)
            return Group(Text(f"checking model, data and machine, starting workers: {passed}"))
        rows = dict(self._rows)  # drawn in another thread than the one that adds rows
        running = {n: row for n, row in rows.items() if row.outcome is None}
        ended = {n: row for n, row in rows.items() if row.outcome is not None}
        members = _front_so_far(search, ended)
        best = {n: row for n, row in ended.items() if n in members}
        table = Table(title=self._headline(search, running, ended), title_justify="left", **COMPACT)
        trial_columns(table, search.objective_list)
        for number, row in running.items():
            self._add(table, search, number, row, "paused" if row.paused else "running" if row.report else "started")
        first = search.objective_list[0]
        sign = -1 if first.direction == "maximize" else 1
        for number, row in sorted(best.items(), key=lambda item: sign * _value(item[1], first.name)):
            self._add(table, search, number, row, "[bold]front so far[/bold]")
        recent = [n for n in ended if n not in best][-5:]
        for number in recent:
            outcome = ended[number].outcome
            self._add(table, search, number, ended[number], outcome.name.lower().replace("_", " ") if outcome else "")
        return Group(table, *(Text(message, style="dim") for message in self._messages))

    def _headline(self, search: SearchFile, running: dict[int, _Row], ended: dict[int, _Row]) -> str:
        outcomes = [row.outcome for row in ended.values() if row.outcome is not None]
        counted = sum(outcome.counts for outcome in outcomes)
        failed = sum(outcome.is_failure and outcome.counts for outcome in outcomes)
        stopped = sum(outcome in {Outcome.STOPPED, Outcome.CANCELLED, Outcome.DIVERGED} for outcome in outcomes)
        done, budget, now = self._already + counted, search.budget.trials, self.clock()
        left = time_left(now - self._start, counted, budget - done, _end(search, self._start) - now)
        finished = counted - failed - stopped
        return (
            f"{search.name}  {done}/{budget} trials: {len(running)} running, {finished} finished, "
            f"{stopped} stopped, {failed} failed; {spell(now - self._start)} passed, {left}"
        )

    def _add(self, table: Table, search: SearchFile, number: int, row: _Row, state: str) -> None:
        table.add_row(
            str(number), row.label, f"{row.rows}/{self._rungs[-1]}",
            *cells(row.report.measurements if row.report else {}, search.objective_list), state,
        )  # fmt: skip


def _front_so_far(search: SearchFile, ended: dict[int, _Row]) -> set[int]:
    complete = {
        n: row.report.measurements for n, row in ended.items() if row.outcome is Outcome.COMPLETE and row.report
    }
    return undominated(complete, search.objective_list, search.limits)


def _end(search: SearchFile, start: float) -> float:
    """When its hours are over at the latest; what earlier drivers took of them is not known here."""
    return math.inf if search.budget.hours is None else start + search.budget.hours * 3600


def _value(row: _Row, name: str) -> float:
    return float(row.report.measurements.get(name) or 0) if row.report else 0.0


def _numbers(measured: Mapping[str, object], objectives: Sequence[Objective]) -> str:
    """`perplexity 54.01, peak VRAM 0.03166 GiB`; what is not measured yet is left out."""
    shown = [
        f"{o.label} {text} {o.unit}".rstrip()
        for text, o in zip(cells(measured, objectives), objectives, strict=True)
        if text
    ]
    return ", ".join(shown)


def time_left(passed: float, done: int, remaining: int, at_most: float = math.inf) -> str:
    """An estimate from the trials so far: `2 min left`; no promise before the first one has ended.

    Args:
        passed: seconds so far.
        done: trials in them.
        remaining: trials.
        at_most: seconds that the budget leaves.
    """
    if remaining <= 0:
        return "the last ones"
    if done > 0:
        return f"{spell(min(passed / done * remaining, max(0.0, at_most)))} left"
    return "time left unknown" if math.isinf(at_most) else f"at most {spell(at_most)} left"


def last_line(text: str) -> str:
    """The line of a traceback that says what happened."""
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""
