"""An exported configuration trained at full length, in one process, into a folder like an export.

It is a search of one configuration: the same checks, rows, trainer and evaluation. While it trains its files stand in
`training/` inside the folder; a training that was interrupted goes on from its last checkpoint there, and reports the
losses of one that never was. On success that folder is removed, and the adapter stands in its place.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorafront.search.environment import heavy_imports
from lorafront.search.export import ADAPTER_FILES, FACTS, Exported, from_here
from lorafront.search.paths import RootPaths
from lorafront.search.prepared import Prepared
from lorafront.search.recipes import INDEX
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.errors import Incomplete, InvalidInput
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.checkpoint import write_json
from lorafront.trainables.orders import NoOrders
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report, Trial, TrialFolder

WORK, ASKED = "training", "asked.json"
Progress = Callable[[int, int], None]  # rows seen, rows in all
Said = Callable[[Report, int], None]  # a report, rows in all


@dataclass(frozen=True)
class Length:
    """How long, and on what.

    Attributes:
        epochs: passes over the rows.
        data: path or hub name; None is the data of the search.
        eval_data: the same for evaluation; None is what the data has, or a seeded part of it.
        train_rows: at most so many; None is all.
        model: the base, where it is not any more where the export says.
    """

    epochs: float
    data: str | None = None
    eval_data: str | None = None
    train_rows: int | None = None
    model: str | None = None


@dataclass
class _Asked(NoOrders):
    """Implements `Orders`: leave at the next optimizer step once a signal has come."""

    heard: bool = field(default=False)

    def pause_now(self) -> bool:
        """True from the first signal on."""
        return self.heard

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """While the block runs, the first Ctrl-C or SIGTERM is noted, and a second one does what it always does."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.getsignal(number) for number in numbers]

        def hear(_number: int, _frame: object) -> None:
            self.heard = True
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

        for number in numbers:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def train_export(
    folder: Path, out: Path, length: Length, progress: Progress = lambda _seen, _all: None,
    said: Said = lambda _report, _all: None,
) -> TrialRecord:  # fmt: skip
    """Train the configuration of an exported folder and write its adapter.

    Args:
        folder: of one trial, as `export` wrote it.
        out: folder to write; of a training that was interrupted it has the checkpoints.
        length: how long, and on what.
        progress: called before each optimizer step.
        said: called after each epoch with what was measured.

    Returns:
        The training as a record.

    Raises:
        InvalidInput: the folder is no export, the data or the model does not fit, or `out` holds something else.
        Incomplete: it was interrupted or failed; the same call goes on.
    """
    exported = read_export(folder)
    search, lora = one_configuration(exported, length)
    work = out / WORK
    _claim(out, {"search": search.model_dump(mode="json"), "trial": exported["trial"]})
    with heavy_imports("transformers"):
        from lorafront.search.preflight import check
    prepared = by_epochs(check(search, RootPaths(work), Path(), warm=False), lora)
    prepared.store()
    trial, asked = _trial(prepared, lora, work)
    with asked.hearing():
        report = _run(trial, progress, said)
    if report.paused:
        raise Incomplete(f"interrupted after {report.rows} of {trial.rungs[-1]} rows; the same command goes on")
    if report.outcome is not Outcome.COMPLETE:
        reason = report.outcome.value if report.outcome else "no outcome"
        raise Incomplete(f"{reason}: {report.error or 'the loss is not finite'}; the same command tries again")
    now, reports = datetime.now(UTC), trial.folder.read_reports()
    record = TrialRecord(exported["trial"], "COMPLETE", lora, 1, tuple(reports[:-1]), report, now, now)
    table = StudyTable(prepared.search, (record,), {}, prepared.notes)
    Exported(table, record, trial.folder.checkpoint(report.rows), out, from_here(prepared.search.model.name)).put_into(
        out
    )
    shutil.rmtree(work)
    return record


def read_export(folder: Path) -> dict[str, Any]:
    """What an export says of its trial.

    Raises:
        InvalidInput: it is no folder of one trial, or is of an older version.
    """
    if (folder / INDEX).is_file():
        found = sorted(path.name for path in folder.glob("trial-*"))
        raise InvalidInput(f"{folder} holds several trials; name one of {', '.join(found)} in it")
    try:
        exported: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{folder} is no exported trial: it has no readable {FACTS} ({error})") from error
    if "settings" not in exported:
        raise InvalidInput(f"{folder / FACTS} is of an earlier version; export the trial again")
    return exported


def one_configuration(exported: dict[str, Any], length: Length) -> tuple[SearchFile, LoraConfiguration]:
    """A search file whose space is the exported configuration, as it was executed, and that configuration."""
    values = {**exported["configuration"]}
    said: dict[str, Any] = {**exported["settings"]}
    training = {key: value for key, value in said["training"].items() if key not in {"epochs", "steps", "rows"}}
    executed = {**exported.get("execution", {})}
    values |= {name: executed[name] for name in ("batch_size", "gradient_accumulation") if name in executed}
    training |= {name: executed[name] for name in ("gradient_checkpointing", "optimizer") if name in executed}
    lora = LoraConfiguration(**values)
    data = {**said["data"], "train_rows": length.train_rows}
    if length.data is not None:
        dropped = ("config_name", "revision", "eval_path")
        data = {**{key: value for key, value in data.items() if key not in dropped}, "path": length.data}
    if length.eval_data is not None:
        data["eval_path"] = length.eval_data
    model = {**said["model"], **({"name": length.model, "revision": None} if length.model else {})}
    space = {**values, "alpha": {"absolute": values["alpha"]}}
    search = {
        **said, "model": model, "data": data, "space": space,
        "training": {**training, "epochs": length.epochs, "rungs": 1, "execution": "given"},
        "budget": {"trials": 1}, "start_points": {"recommended": False, "points": []}, "sampler": "random",
        "early_stopping": "off", "engine": "process",
    }  # fmt: skip
    return parse_search(search), lora


def by_epochs(prepared: Prepared, lora: LoraConfiguration) -> Prepared:
    """With an evaluation after each epoch and at the end."""
    step = lora.batch_size * lora.gradient_accumulation
    total, epoch = prepared.rungs[-1], max(len(prepared.tokens.train), step)
    return replace(prepared, rungs=(*range(epoch, total - step, epoch), total))


def _trial(prepared: Prepared, lora: LoraConfiguration, work: Path) -> tuple[Trial, _Asked]:
    with heavy_imports("peft"):
        from lorafront.trainables.frozen_base import BaseCache
        from lorafront.trainables.peft_session import open_session

    config, asked, folder = prepared.trial(lora), _Asked(), TrialFolder(work / "trial")
    if any(report.outcome is not Outcome.COMPLETE for report in folder.read_reports()[-1:]):
        folder.set_result_aside()  # it failed before, and is asked for again
    predicted = prepared.predicted(lora)
    known: dict[str, float | str] = {"predicted_peak_vram_gb": predicted.peak / 2**30} if predicted else {}
    trial = Trial(
        lambda: open_session(config, BaseCache()), prepared.rungs, folder, asked,
        checkpoint_seconds=60 * prepared.search.training.checkpoint_minutes, known=known,
    )  # fmt: skip
    return trial, asked


def _run(trial: Trial, progress: Progress, said: Said) -> Report:
    """From where it is to its end, or to where it is asked to leave."""
    total = trial.rungs[-1]

    def interrupted() -> bool:
        if trial.session is not None:
            progress(trial.session.rows_seen, total)
        return trial.interrupted()

    report = trial.begin()
    while report is None or (report.outcome is None and not report.paused):
        if trial.session is None:
            raise RuntimeError("the training has not begun")
        try:
            trial.session.train(trial.goal, interrupted)
        except Exception as error:  # noqa: BLE001  # what a training meets is its outcome, as a trial's is
            return trial.failed(error)
        report = trial.measure() if trial.at_rung else trial.keep()
        if report is not None and report.measurements:
            said(report, total)
    return report


def _claim(out: Path, asked: dict[str, Any]) -> None:
    """Take a new folder, or one in which the same training was interrupted.

    Raises:
        InvalidInput: it holds something else.
    """
    note = out / WORK / ASKED
    if note.is_file():
        if json.loads(note.read_text(encoding="utf-8")) != asked:
            raise InvalidInput(f"{out} holds a training of something else that was interrupted; give another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        there = "a trained adapter" if (out / ADAPTER_FILES[1]).is_file() else "other files"
        raise InvalidInput(f"{out} holds {there}; give another --out")
    write_json(note, asked)
