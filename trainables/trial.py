"""One trial from rung to rung: trains a session, measures, and leaves files that survive whatever comes next.

Everything is written below one folder, `trials/NNNNN/epoch-E`: `ckpt-ROWS/` at each rung and `result.json` at the end.
A trial that is started again in a folder goes on from its last checkpoint that verifies.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafront.spaces.errors import CheckpointInvalid, StateUnreadable
from lorafront.trainables.checkpoint import ASIDE, read_manifest, write_folder, write_json
from lorafront.trainables.outcome import Outcome, classify
from lorafront.trainables.session import Session

MakeSession = Callable[[], Session]


@dataclass(frozen=True)
class Report:
    """What a trial says at a rung.

    Attributes:
        rows: training rows at this rung.
        measurements: names as in `Measurements`; empty where the trial failed.
        outcome: how it ended; None where it goes on.
        error: for a failure, what happened.
    """

    rows: int
    measurements: dict[str, Any]
    outcome: Outcome | None = None
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """For files and for the wire; values that are not finite become None, which JSON can say."""
        return {
            "rows": self.rows,
            "measurements": {name: _plain(value) for name, value in self.measurements.items()},
            "outcome": self.outcome.stored if self.outcome else None,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Report:
        """The inverse of `as_json`."""
        outcome = Outcome.of(raw["outcome"]) if raw["outcome"] else None
        return cls(raw["rows"], raw["measurements"], outcome, raw["error"])


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class TrialFolder:
    """Names of one trial's files."""

    path: Path

    @property
    def result(self) -> Path:
        """The final report; there once the trial has ended."""
        return self.path / "result.json"

    def checkpoint(self, rows: int) -> Path:
        """State after so many training rows."""
        return self.path / f"ckpt-{rows}"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(rows, folder) of every finished checkpoint, newest first."""
        if not self.path.is_dir():
            return []
        found = [(p.name.removeprefix("ckpt-"), p) for p in self.path.glob("ckpt-*") if ASIDE not in p.name]
        return sorted(((int(rows), path) for rows, path in found if rows.isdigit()), reverse=True)

    def read_reports(self) -> list[Report]:
        """All that an ended trial reported, the final report last; nothing where it has not ended.

        Raises:
            StateUnreadable: the file is there and cannot be read.
        """
        try:
            raw = json.loads(self.result.read_text(encoding="utf-8"))
            final = Report.from_json(raw)
            return [*(r for r in map(Report.from_json, raw["history"]) if r.rows < final.rows), final]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError) as error:
            raise StateUnreadable(
                f"{self.result} cannot be read ({error}); move it away to train this trial again"
            ) from error


@dataclass
class Trial:
    """Drives one session along its rungs."""

    make_session: MakeSession
    rungs: tuple[int, ...]
    folder: TrialFolder
    _session: Session | None = None
    _reached: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def next_rung(self) -> Report:
        """Train to the next rung and report. A failure is a report too: this never raises for the trial's own fault."""
        ended = self.folder.read_reports()
        if ended:  # a worker died after it wrote this
            return ended[-1]
        try:
            report = self._advance()
        except Exception as error:  # noqa: BLE001  # the worker's outermost line: whatever a trial throws is its outcome
            short = "".join(traceback.format_exception(error, limit=-4)).strip()
            report = Report(self._reached, {}, classify(error), short)
        if report.outcome is not None:
            self._finish(report)
        return report

    def _advance(self) -> Report:
        if self._session is None:
            checkpoint = self._last_checkpoint()
            if self._reached == self.rungs[-1]:
                return Report.from_json(self.history[-1])  # all was trained; only the result was not written
            self._session = self.make_session()
            if checkpoint is not None:
                self._session.load(checkpoint)
        rows = next(rung for rung in self.rungs if rung > self._reached)
        self._session.train(rows)
        measured = dict(self._session.evaluate())
        self._reached = rows
        if not _finite(measured):
            return Report(rows, measured, Outcome.DIVERGED)
        last = rows == self.rungs[-1]
        report = Report(rows, measured, Outcome.COMPLETE if last else None)
        self.history.append(report.as_json())
        session = self._session
        write_folder(self.folder.checkpoint(rows), session.save, {"rows": rows, "history": self.history})
        for _, old in self.folder.checkpoints()[1 if last else 2 :]:
            shutil.rmtree(old, ignore_errors=True)
        return report

    def _last_checkpoint(self) -> Path | None:
        """The newest checkpoint that verifies; half-written ones are swept."""
        for aside in self.folder.path.glob(f"*{ASIDE}*"):
            shutil.rmtree(aside, ignore_errors=True)
        for rows, path in self.folder.checkpoints():
            try:
                self.history = list(read_manifest(path)["history"])
            except CheckpointInvalid:
                continue
            self._reached = rows
            return path
        return None

    def _finish(self, report: Report) -> None:
        failed = report.outcome is not None and report.outcome.is_failure
        # On a full disk the report of that failure cannot be written either; it still reaches the driver.
        with contextlib.suppress(OSError) if failed else contextlib.nullcontext():
            write_json(self.folder.result, {**report.as_json(), "history": self.history})
        if failed:
            self._session = None  # whatever broke may break again in close(); the worker drops the base as well
        self.close()

    def close(self) -> None:
        """Give back the session's base."""
        if self._session is not None:
            self._session.close()
            self._session = None


def _finite(measured: dict[str, Any]) -> bool:
    return all(math.isfinite(measured[name]) for name in ("eval_loss", "perplexity", "train_loss") if name in measured)
