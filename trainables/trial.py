"""One trial from rung to rung: trains a session, measures, and leaves files that survive whatever comes next.

Everything is written below one folder, `trials/NNNNN/epoch-E`: `ckpt-ROWS/` at each rung, every few minutes and where
the trial is paused, `result.json` at the end (`attempt-N.json` once it is run again), and `heartbeat.json` meanwhile.
A trial that is started again in a folder goes on from its last checkpoint that verifies.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import psutil

from lorafront.spaces.errors import CheckpointInvalid, StateUnreadable
from lorafront.spaces.sizes import GIB
from lorafront.trainables import heartbeat, witness
from lorafront.trainables.checkpoint import ASIDE, MANIFEST, read_manifest, sha256, write_folder, write_json
from lorafront.trainables.fault_points import reached
from lorafront.trainables.orders import NoOrders, Orders
from lorafront.trainables.outcome import OUT_OF_MEMORY, Outcome, classify
from lorafront.trainables.session import Session

MakeSession = Callable[[], Session]


@dataclass(frozen=True)
class Report:
    """What a trial says at a rung.

    Attributes:
        rows: training rows at this rung, or where it was paused.
        measurements: names as in `Measurements`; none where the trial was paused between two rungs, and where it failed
            at most the memory that it held.
        outcome: how it ended; None where it goes on.
        error: for a failure, what happened.
        paused: it was asked to leave and has; its last checkpoint has all that it did.
    """

    rows: int
    measurements: dict[str, Any]
    outcome: Outcome | None = None
    error: str = ""
    paused: bool = False

    @property
    def at_rung(self) -> bool:
        """True where it holds what was measured at a rung, and not where a trial failed or was paused in between."""
        return bool(self.measurements) and self.outcome in {None, Outcome.COMPLETE, Outcome.CANCELLED}

    def as_json(self) -> dict[str, Any]:
        """For files and for the wire; values that are not finite become None, which JSON can say."""
        return {
            "rows": self.rows,
            "measurements": {name: _plain(value) for name, value in self.measurements.items()},
            "outcome": self.outcome.stored if self.outcome else None,
            "error": self.error,
            **({"paused": True} if self.paused else {}),
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Report:
        """The inverse of `as_json`."""
        outcome = Outcome.of(raw["outcome"]) if raw["outcome"] else None
        return cls(raw["rows"], raw["measurements"], outcome, raw["error"], raw.get("paused", False))


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

    def set_result_aside(self) -> None:
        """Make room for another attempt; what this one said stays beside it as `attempt-N.json`."""
        earlier = len(list(self.path.glob("attempt-*.json")))
        with contextlib.suppress(FileNotFoundError):
            self.result.rename(self.path / f"attempt-{earlier}.json")

    def sweep(self) -> None:
        """Remove what a worker that died had half written; no living one may be at work here."""
        for aside in self.path.glob(f"*{ASIDE}*"):
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def checkpoint(self, rows: int) -> Path:
        """State at the rung of so many training rows, or between rungs after so many."""
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
            history = map(Report.from_json, raw["history"])
            return [*(report for report in history if not final.at_rung or report.rows < final.rows), final]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError) as error:
            raise StateUnreadable(
                f"{self.result} cannot be read ({error}); move it away to train this trial again"
            ) from error


@dataclass
class Trial:
    """Drives one session along its rungs.

    `next_rung` does all of it. Whoever trains several sessions at once calls its phases: `begin`, then again and again
    `keep` while the session trains to its `goal`, and `measure` there.

    Attributes:
        make_session: a fresh session; called when there is something to train.
        rungs: training rows at which it reports.
        folder: its files.
        orders: what it is asked to do meanwhile.
        checkpoint_seconds: a checkpoint between rungs once so many have passed since the last one.
        clock: seconds.
        known: measurements that were known before it ran, such as a predicted one; every report has them.
        history: reports at the rungs so far, as JSON.
        session: while it trains.
    """

    make_session: MakeSession
    rungs: tuple[int, ...]
    folder: TrialFolder
    orders: Orders = field(default_factory=NoOrders)
    checkpoint_seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    known: Mapping[str, float | str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    session: Session | None = None
    _reached: int = 0  # rows of the newest checkpoint
    _due: float = math.inf  # when the next one is

    def next_rung(self) -> Report:
        """Train to the next rung and report. A failure is a report too: this never raises for the trial's own fault."""
        return self.begin() or self._guarded(self._train)

    def begin(self) -> Report | None:
        """Open the session, where it is not; a report where there is nothing to train, or it failed or is to leave."""
        if self.session is not None:
            return None
        ended = self.folder.read_reports()
        if ended:  # a worker died after it wrote this
            return ended[-1]
        return self._guarded(self._open)

    @property
    def goal(self) -> int:
        """Training rows of the rung that it trains for."""
        return next(rung for rung in self.rungs if rung > self._reached)

    @property
    def at_rung(self) -> bool:
        """True where its session has seen those rows."""
        return self._opened.rows_seen >= self.goal

    def interrupted(self) -> bool:
        """True where a checkpoint is asked for, or due and there is something new to save."""
        return self._is_due() or self.orders.pause_now()

    def keep(self) -> Report | None:
        """Between rungs: write a checkpoint where one is asked for or due; a report where the trial is to leave."""
        if self.orders.pause_now():
            return self.pause()
        return self._guarded(self._save_here) if self._is_due() else None

    def pause(self) -> Report:
        """Between rungs: save, and report that the trial can go on elsewhere."""

        def save() -> Report:
            self._save_here()
            return Report(self._opened.rows_seen, {}, paused=True)

        return self._guarded(save)

    def measure(self) -> Report:
        """At a rung: evaluate, save and report."""
        return self._guarded(self._measure)

    def failed(self, error: BaseException) -> Report:
        """Report what its session met outside of this."""
        return self._finish(self._failure(error))

    def close(self) -> None:
        """Give back the session's base."""
        heartbeat.end(self.folder.path)
        if self.session is not None:
            self.session.close()
            self.session = None

    @property
    def _opened(self) -> Session:
        if self.session is None:
            raise RuntimeError("the trial has not begun")
        return self.session

    def _is_due(self) -> bool:
        return self.clock() >= self._due and self._opened.rows_seen > self._reached

    @overload
    def _guarded(self, phase: Callable[[], Report]) -> Report: ...
    @overload
    def _guarded(self, phase: Callable[[], Report | None]) -> Report | None: ...
    def _guarded(self, phase: Callable[[], Report | None]) -> Report | None:
        """What a phase reports; whatever it throws is the trial's outcome, and an outcome is written down."""
        try:
            report = phase()
        except Exception as error:  # noqa: BLE001  # the worker's outermost line
            report = self._failure(error)
        return self._finish(report) if report is not None and report.outcome is not None else report

    def _failure(self, error: BaseException) -> Report:
        short = "".join(traceback.format_exception(error, limit=-4)).strip()
        outcome = classify(error)
        measured = {**self.known, **_memory_held(error)} if outcome in OUT_OF_MEMORY else {}
        return Report(self._reached, measured, outcome, short)

    def _open(self) -> Report | None:
        checkpoint = self._last_checkpoint()
        witness.note(witness.START, self.folder.path, self._reached)
        if self._reached == self.rungs[-1]:
            return Report.from_json(self.history[-1])  # all was trained; only the result was not written
        if self.orders.cancel():
            return Report(self._reached, {}, Outcome.CANCELLED)
        if self.orders.pause():
            return Report(self._reached, {}, paused=True)
        heartbeat.begin(self.folder.path)
        self.session = self.make_session()
        if checkpoint is not None:
            self.session.load(checkpoint)
        self._due = self.clock() + self.checkpoint_seconds
        return None

    def _train(self) -> Report:
        """Train to the next rung, with checkpoints on the way, and measure there."""
        reached("before_train")
        while True:
            self._opened.train(self.goal, self.interrupted)
            if self.at_rung:
                return self._measure()
            self._save_here()
            if self.orders.pause_now():
                return Report(self._opened.rows_seen, {}, paused=True)

    def _measure(self) -> Report:
        session, rows = self._opened, self.goal
        measured = _with_error({**self.known, **session.evaluate()})
        if not _finite(measured):
            self._reached = rows
            return Report(rows, measured, Outcome.DIVERGED)
        last = rows == self.rungs[-1]
        outcome = Outcome.COMPLETE if last else Outcome.CANCELLED if self.orders.cancel() else None
        report = Report(rows, measured, outcome)
        self.history.append(report.as_json())
        self._save(session, rows, keep=1 if last else 2)
        return replace(report, paused=True) if outcome is None and self.orders.pause() else report

    def _save_here(self) -> None:
        """A checkpoint between rungs, where there is something new."""
        if self._opened.rows_seen > self._reached:
            self._save(self._opened, self._opened.rows_seen, keep=2)

    def _save(self, session: Session, rows: int, *, keep: int) -> None:
        """Write a checkpoint and remove all but the newest so many."""
        write_folder(self.folder.checkpoint(rows), session.save, {"rows": rows, "history": self.history})
        digest = sha256(self.folder.checkpoint(rows) / MANIFEST)
        witness.note(witness.CKPT, self.folder.path, rows, {"sha256": digest})
        heartbeat.beat()
        self._reached = rows
        self._due = self.clock() + self.checkpoint_seconds
        for _, old in self.folder.checkpoints()[keep:]:
            shutil.rmtree(old, ignore_errors=True)

    def _last_checkpoint(self) -> Path | None:
        """The newest checkpoint that verifies; half-written ones are swept."""
        self.folder.sweep()
        for rows, path in self.folder.checkpoints():
            try:
                self.history = list(read_manifest(path)["history"])
            except CheckpointInvalid:
                continue
            self._reached = rows
            return path
        return None

    def _finish(self, report: Report) -> Report:
        """Write the result. On a full disk there is none, and the report says so: the trial is run again later."""
        if report.outcome is not Outcome.DISK_FULL:
            try:
                reached("before_result_rename")
                write_json(self.folder.result, {**report.as_json(), "history": self.history})
            except OSError as error:
                if classify(error) is not Outcome.DISK_FULL:
                    raise
                report = self._failure(error)
            else:
                witness.note(witness.FINAL, self.folder.path, report.rows, report.as_json())
                reached("after_result_rename")
        if report.outcome is not None and report.outcome.is_failure:
            self.session = None  # whatever broke may break again in close(): whoever made the session sees to it
        self.close()
        return report


def _finite(measured: dict[str, Any]) -> bool:
    return all(math.isfinite(measured[name]) for name in ("eval_loss", "perplexity", "train_loss") if name in measured)


def _with_error(measured: dict[str, Any]) -> dict[str, Any]:
    """Add by how many percent of the measured peak memory the predicted one is off."""
    predicted, found = measured.get("predicted_peak_vram_gb"), measured.get("peak_vram_gb")
    return {**measured, "vram_error_percent": 100 * (predicted / found - 1)} if predicted and found else measured


# torch's words: "Tried to allocate 2.00 GiB … Of the allocated memory 9.10 GiB is allocated by PyTorch, and 120.00 MiB
# is reserved by PyTorch but unallocated."
_ASKED_FOR = re.compile(r"tried to allocate ([\d.]+) ?([kmg]?i?b)", re.IGNORECASE)
_HELD = re.compile(r"([\d.]+) ?([kmg]?i?b) is (?:allocated|reserved) by pytorch", re.IGNORECASE)
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def _memory_held(error: BaseException) -> dict[str, float]:
    """GiB that this process held when it ran out, and what it asked for and could have had, where that is known.

    Held by CUDA's allocator or in tensors; resident where the machine's memory was full.
    """
    found = {"memory_at_failure_gb": psutil.Process().memory_info().rss / GIB}
    if hasattr(error, "held") and hasattr(error, "requested") and hasattr(error, "available"):  # MemoryCapExceeded
        return {
            "memory_at_failure_gb": error.held / GIB,
            "memory_requested_gb": error.requested / GIB,
            "memory_available_gb": error.available / GIB,
        }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["memory_at_failure_gb"] = torch.cuda.max_memory_allocated() / GIB
        with contextlib.suppress(RuntimeError):  # the device is broken
            found["memory_available_gb"] = torch.cuda.mem_get_info()[0] / GIB
    asked, held = _ASKED_FOR.search(str(error)), _HELD.findall(str(error))
    if asked is not None:
        found["memory_requested_gb"] = _gib(asked[1], asked[2])
    if held:
        found["memory_at_failure_gb"] = sum(_gib(*size) for size in held)
    return found


def _gib(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit[0].lower()] / GIB
