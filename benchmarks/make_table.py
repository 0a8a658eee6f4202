"""Makes a table of trials: one `lorafront` search over the whole grid per seed, then one file of what they measured.

The searches are ordinary ones (`lorafront status NAME-seed0 --root ROOT` shows them); an interrupted one goes on where
it was. What a trial takes is the least over the trials that differ only in seed, learning rate and alpha, which do the
same work: other load on the machine only ever adds to it, and would look like an expensive configuration. Where the
machine was busy all along, `--times` trains each of these works once more, when it is quiet, and takes the times from
there.

python benchmarks/make_table.py benchmarks/tables/tiny-llama-shakespeare.yaml --seeds 0 1
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from trial_table import TABLES, Floats, TrialTable, grid, write_table

from lorafront.search import (
    RootPaths,
    SearchFile,
    StudyTable,
    parse_search,
    read_search_file,
    read_study,
    resume_search,
    run_search,
)
from lorafront.search.study_table import TrialRecord
from lorafront.spaces.lora import AlphaRatio, LoraConfiguration
from lorafront.spaces.parameters import values_of
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

PACKAGES = ("lorafront", "ray", "optuna", "torch", "transformers", "peft", "bitsandbytes")
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


# ---------------------------------------------------------------- train


def train(search: SearchFile, seed: int, root: RootPaths, near: Path) -> StudyTable:
    """The search of one seed, to its end; nothing is done where it has ended."""
    name = f"{search.name}-seed{seed}"
    study_db = root.search(name).study_db
    if not study_db.is_file():
        return run_search(search.model_copy(update={"name": name, "seed": seed}), root, near=near)
    study = read_study(study_db)
    return study if len(study.counted) >= study.search.budget.trials else resume_search(name, root)


def one_of_each_work(search: SearchFile) -> SearchFile:
    """The search of those trials of the grid that differ in how long they take: one learning rate, one alpha."""
    alpha, rate = search.space.alpha, search.space.learning_rate
    field = "ratio" if isinstance(alpha, AlphaRatio) else "absolute"
    first = {field: values_of(getattr(alpha, field))[0]}
    raw = search.model_dump(mode="json")
    raw["space"] |= {"alpha": first, "learning_rate": values_of(rate)[0]}
    raw["name"] = f"{search.name}-times"
    smaller = parse_search(raw)
    return smaller.model_copy(update={"budget": smaller.budget.model_copy(update={"trials": len(grid(smaller))})})


# ---------------------------------------------------------------- gather


def make_table(
    search: SearchFile, studies: Sequence[StudyTable], provenance: dict[str, Any], timed: StudyTable | None = None
) -> TrialTable:
    """One table from one finished study per seed.

    Args:
        search: the file as it was written, without a seed and with the paths that others can read.
        studies: one per seed, of the same space, rungs and data.
        provenance: where the numbers come from.
        timed: where the times are from instead; it needs each work once.

    Raises:
        ValueError: a configuration is missing from a study, or failed there.
    """
    configurations = tuple(grid(search))
    by_seed = [{trial.lora.fingerprint: trial for trial in study.trials} for study in studies]
    records = [[_ended(found, lora) for found in by_seed] for lora in configurations]
    rungs = tuple(sorted({report.rows for found in records for trial in found for report in trial.rungs}))
    reports = [[_at_rungs(trial, rungs) for trial in found] for found in records]

    def column(name: str) -> Floats:
        """[C, S, R]; NaN where a trial did not come so far."""
        return np.array([[[_number(report, name) for report in row] for row in found] for found in reports])

    def first(name: str) -> Floats:
        """[C], the same at all rungs and seeds."""
        largest: Floats = np.nanmax(column(name), axis=(1, 2))
        return largest

    everything = [trial for found in records for trial in found]
    seconds = _least(timed.complete if timed else everything, rungs)
    return TrialTable(
        search=search,
        rungs=rungs,
        seeds=tuple(study.search.seed for study in studies),
        configurations=configurations,
        eval_loss=column("eval_loss"),
        peak_vram_gb=first("peak_vram_gb"),
        trainable_params=first("trainable_params"),
        adapter_mb=first("adapter_mb"),
        setup_seconds=np.array([seconds[_work(lora)]["setup_seconds"][0] for lora in configurations]),
        train_seconds=np.array([seconds[_work(lora)]["train_seconds"] for lora in configurations]),
        eval_seconds=np.array([seconds[_work(lora)]["eval_seconds"] for lora in configurations]),
        provenance=provenance,
    )


def _ended(found: dict[str, TrialRecord], lora: LoraConfiguration) -> TrialRecord:
    trial = found.get(lora.fingerprint)
    if trial is None or trial.outcome not in {Outcome.COMPLETE, Outcome.DIVERGED}:
        how = "is missing" if trial is None else f"ended otherwise: {trial.outcome.value if trial.outcome else 'runs'}"
        raise ValueError(f"{lora.label} at learning rate {lora.learning_rate:g} {how}")
    return trial


def _at_rungs(trial: TrialRecord, rungs: Sequence[int]) -> list[Report | None]:
    """The report of each rung; from where it diverged there is none."""
    by_rows = {report.rows: report for report in trial.rungs}
    return [by_rows.get(rows) for rows in rungs]


def _number(report: Report | None, name: str) -> float:
    value = report.measurements.get(name) if report else None
    return float(value) if isinstance(value, (int, float)) else math.nan


Work: TypeAlias = tuple[int, str, str, int]


def _work(lora: LoraConfiguration) -> Work:
    """What trials that take equally long have in common."""
    return (lora.rank, lora.modules, lora.quantization, lora.batch_size)


def _least(trials: Iterable[TrialRecord], rungs: Sequence[int]) -> dict[Work, dict[str, Floats]]:
    """By work, float64[R] each: seconds of set-up, of training from the rung before, of evaluation; the least found."""
    found: dict[Work, list[dict[str, Floats]]] = {}
    for trial in trials:
        reports = _at_rungs(trial, rungs)
        names = ("setup_seconds", "train_seconds", "eval_seconds")
        seconds = {name: np.array([_number(report, name) for report in reports]) for name in names}
        seconds["train_seconds"] = np.diff(seconds["train_seconds"], prepend=0.0)
        found.setdefault(_work(trial.lora), []).append(seconds)
    return {
        work: {name: np.nanmin([seconds[name] for seconds in same], axis=0) for name in same[0]}
        for work, same in found.items()
    }


# ---------------------------------------------------------------- where it comes from


def provenance(search: SearchFile, near: Path) -> dict[str, Any]:
    """Versions, digests of model and data, and the machine."""
    data = [_place(name, near) for name in (search.data.path, search.data.eval_path) if name]
    model = _place(search.model.name, near)
    return {
        "made by": "benchmarks/make_table.py",
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "data": {path.name: _digest(path) for path in data},
        "model": {name: _digest(model / name) for name in MODEL_FILES},
        "device": _device(),
    }


def _place(name: str, near: Path) -> Path:
    """As `lorafront` looks for it: in the current folder, then beside the search file."""
    return Path(name) if Path(name).exists() else near / name


def _digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, one core per trial, {os.cpu_count()} cores"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="search file whose space has choices only")
    parser.add_argument("--data", help="where the data is, instead of the path in the file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where the searches stand")
    parser.add_argument("--times", action="store_true", help="train each work once more, and take the times from there")
    parser.add_argument("--out", type=Path, help="the table; default: beside the search files")
    return parser.parse_args()


def main() -> None:
    """Train what is not there yet, then write the table."""
    asked = arguments()
    near = asked.file.absolute().parent
    written = read_search_file(asked.file)
    moved = {"data": written.data.model_copy(update={"path": asked.data})} if asked.data else {}
    search = written.model_copy(update=moved)
    root = RootPaths(asked.root)
    studies = []
    for seed in asked.seeds:
        studies.append(train(search, seed, root, near))
        print(f"seed {seed}: {len(studies[-1].complete)} trials at full fidelity", flush=True)
    comes_from = provenance(search, near) | {
        "times": "one quiet run of each work" if asked.times else "least of the seeds"
    }
    timed = train(one_of_each_work(search), asked.seeds[0], root, near) if asked.times else None
    table = make_table(written, studies, comes_from, timed)
    out = asked.out or TABLES / f"{written.name}.json"
    write_table(out, table)
    print(f"wrote {out}: {len(table)} configurations, {len(table.seeds)} seeds, rungs {table.rungs}")


if __name__ == "__main__":
    main()
