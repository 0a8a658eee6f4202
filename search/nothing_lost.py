"""Whether a search lost anything, did anything twice, or changed anything: its study against a record from outside.

The record is what workers noted about themselves (trainables/witness.py). Pure but for reading that file; the tests of
`tests/faults` and `benchmarks/soak.py` ask here after every fault.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafront.search.front import front_of, undominated
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.trainables.outcome import OUT_OF_MEMORY, Outcome
from lorafront.trainables.trial import Report
from lorafront.trainables.witness import CKPT, FINAL, START

_FOLDER = re.compile(r"trials/(\d+)/epoch-(\d+)$")


@dataclass(frozen=True)
class Line:
    """One line of the record.

    Attributes:
        event: `start`, `ckpt` or `final`.
        number: of the trial.
        epoch: of the driver that started the worker.
        rows: training rows.
        facts: the rest of the line.
    """

    event: str
    number: int
    epoch: int
    rows: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        lost: a result that a worker had written is not recorded, or with other values.
        doubled: a finished trial was trained again, or a configuration or a result counts twice.
        wrong: the rest: trials left running, a budget that is not spent exactly, work thrown away, another front.
        restarts: how often a trial was started again.
        reworked: rows that had to be trained again at most, over all restarts.
    """

    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    wrong: tuple[str, ...]
    restarts: int
    reworked: int

    @property
    def problems(self) -> tuple[str, ...]:
        """All of them; none is a search that kept its promise."""
        return self.lost + self.doubled + self.wrong


def read_witness(file: Path) -> list[Line]:
    """The record in the order in which it was written; a line that a kill has torn is no event."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            raw = json.loads(text)
        except ValueError:
            continue
        found = _FOLDER.search(raw["folder"])
        if found:
            lines.append(Line(raw["event"], int(found[1]), int(found[2]), raw["rows"], raw))
    return lines


def judge(lines: Sequence[Line], table: StudyTable, rungs: Sequence[int]) -> Verdict:
    """Compare the record with the study of a search that came to its end.

    Args:
        lines: the record of all workers.
        table: the study.
        rungs: training rows at which trials report.
    """
    by_trial: dict[int, list[Line]] = {}
    for line in lines:
        by_trial.setdefault(line.number, []).append(line)
    records = {trial.number: trial for trial in table.trials}
    finals = {number: final for number, own in by_trial.items() if (final := _final(own)) is not None}
    lost = [problem for number, final in finals.items() for problem in _recorded(final, records.get(number))]
    doubled = [problem for number, own in by_trial.items() for problem in _again(number, own)]
    doubled += _twice(table)
    wrong = [problem for number, own in by_trial.items() for problem in _thrown_away(number, own)]
    wrong += [f"trial {trial.number} was left running" for trial in table.running]
    if len(table.counted) != table.search.budget.trials:
        wrong.append(f"{len(table.counted)} trials count, the budget is {table.search.budget.trials}")
    wrong += _front(finals, table)
    starts = Counter(line.number for line in lines if line.event == START)
    return Verdict(
        tuple(lost),
        tuple(doubled),
        tuple(wrong),
        restarts=sum(count - 1 for count in starts.values()),
        reworked=sum(_reworked(own, rungs) for own in by_trial.values()),
    )


def _current(own: Iterable[Line]) -> list[Line]:
    """Without what a worker of an older epoch did after a newer one had started: nobody looks there."""
    newest, kept = 0, []
    for line in own:
        if line.event == START:
            newest = max(newest, line.epoch)
        if line.epoch >= newest:
            kept.append(line)
    return kept


def _final(own: Iterable[Line]) -> Line | None:
    """The first result that stands; running out of memory is none where another attempt followed."""
    final = None
    for line in _current(own):
        if line.event == FINAL and final is None:
            final = line
        elif line.event == START and final is not None and _outcome(final) in OUT_OF_MEMORY:
            final = None
    return final


def _outcome(final: Line) -> Outcome:
    return Outcome.of(final.facts["outcome"])


def _recorded(final: Line, record: TrialRecord | None) -> list[str]:
    name = f"trial {final.number}"
    if record is None or record.result is None:
        return [f"{name} finished ({final.facts['outcome']}) and is not recorded"]
    said = Report.from_json(dict(final.facts))
    kept = record.result
    renamed = said.outcome is Outcome.COMPLETE and kept.outcome is Outcome.BAD_METRIC
    if kept.measurements != said.measurements or (kept.outcome is not said.outcome and not renamed):
        return [f"{name} is recorded as {kept.as_json()}, its worker wrote {said.as_json()}"]
    return []


def _again(number: int, own: Iterable[Line]) -> list[str]:
    """Started again after it had finished, or finished twice."""
    problems, final = [], None
    for line in _current(own):
        if final is not None and line.event in {START, FINAL} and _outcome(final) not in OUT_OF_MEMORY:
            problems.append(f"trial {number} had finished in epoch {final.epoch}; {line.event} in epoch {line.epoch}")
        if line.event == FINAL:
            final = line
    return problems


def _thrown_away(number: int, own: Iterable[Line]) -> list[str]:
    """Started from less than its last checkpoint."""
    problems, checkpoint = [], 0
    for line in _current(own):
        if line.event == CKPT:
            checkpoint = line.rows
        elif line.event == START and line.rows < checkpoint:
            problems.append(f"trial {number} went on from {line.rows} rows, its last checkpoint had {checkpoint}")
    return problems


def _reworked(own: Iterable[Line], rungs: Sequence[int]) -> int:
    """Rows between where each restart began and the next rung: what the worker before it may have trained in vain."""
    starts = [line.rows for line in own if line.event == START][1:]
    return sum(next((rung for rung in rungs if rung > rows), rows) - rows for rows in starts)


def _twice(table: StudyTable) -> list[str]:
    seen = Counter(trial.lora.fingerprint for trial in table.counted if trial.lora)
    return [f"configuration {fingerprint} counts {count} times" for fingerprint, count in seen.items() if count > 1]


def _front(finals: Mapping[int, Line], table: StudyTable) -> list[str]:
    complete = {
        number: final.facts["measurements"]
        for number, final in finals.items()
        if _outcome(final) is Outcome.COMPLETE and final.facts["measurements"]
    }
    expected = undominated(complete, table.search.objective_list, table.search.limits)
    found = {trial.number for trial in front_of(table)}
    return [f"the front is {sorted(found)}, by the workers' record {sorted(expected)}"] if found != expected else []
