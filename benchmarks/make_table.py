"""Makes a table of trials: one `lorafront` search over the whole grid per seed, then one file of what they measured.

The searches are ordinary ones (`lorafront status NAME-seed0 --root ROOT` shows them); an interrupted one goes on where
it was. What a trial takes is the least over the trials that differ only in seed, learning rate and alpha, which do the
same work: other load on the machine only ever adds to it, and would look like an expensive configuration.

python benchmarks/make_table.py benchmarks/tables/tiny-llama-shakespeare.yaml --seeds 0 1
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from trial_table import TABLES, Floats, TrialTable, grid, write_table

from lorafront.search import RootPaths, SearchFile, StudyTable, read_search_file, read_study, resume_search, run_search
from lorafront.search.study_table import TrialRecord
from lorafront.spaces.lora import LoraConfiguration
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


# ---------------------------------------------------------------- gather


def make_table(search: SearchFile, studies: Sequence[StudyTable], provenance: dict[str, Any]) -> TrialTable:
    """One table from one finished study per seed.

    Args:
        search: the file as it was written, without a seed and with the paths that others can read.
        studies: one per seed, of the same space, rungs and data.
        provenance: where the numbers come from.

    Raises:
        ValueError: a configuration is missing from a study, or failed there.
    """
    configurations = tuple(grid(search))
    by_seed = [{trial.lora.fingerprint: trial for trial in study.trials if trial.lora} for study in studies]
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

    trained = np.diff(column("train_seconds"), axis=2, prepend=0.0)
    return TrialTable(
        search=search,
        rungs=rungs,
        seeds=tuple(study.search.seed for study in studies),
        configurations=configurations,
        eval_loss=column("eval_loss"),
        peak_vram_gb=first("peak_vram_gb"),
        trainable_params=first("trainable_params"),
        adapter_mb=first("adapter_mb"),
        setup_seconds=_least(column("setup_seconds"), configurations)[:, 0],
        train_seconds=_least(trained, configurations),
        eval_seconds=_least(column("eval_seconds"), configurations),
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


def _least(seconds: Floats, configurations: Sequence[LoraConfiguration]) -> Floats:
    """[C, R], the least over what does the same work: [C, S, R] without seed, learning rate and alpha."""
    work = [(lora.rank, lora.modules, lora.quantization, lora.batch_size) for lora in configurations]
    groups = {key: [row for row, other in enumerate(work) if other == key] for key in set(work)}
    least = {key: np.nanmin(seconds[rows], axis=(0, 1)) for key, rows in groups.items()}
    return np.array([least[key] for key in work])


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
    parser.add_argument("--out", type=Path, help="the table; default: beside the search files")
    return parser.parse_args()


def main() -> None:
    """Train what is not there yet, then write the table."""
    asked = arguments()
    near = asked.file.absolute().parent
    written = read_search_file(asked.file)
    moved = {"data": written.data.model_copy(update={"path": asked.data})} if asked.data else {}
    search = written.model_copy(update=moved)
    studies = []
    for seed in asked.seeds:
        studies.append(train(search, seed, RootPaths(asked.root), near))
        print(f"seed {seed}: {len(studies[-1].complete)} trials at full fidelity", flush=True)
    table = make_table(written, studies, provenance(search, near))
    out = asked.out or TABLES / f"{written.name}.json"
    write_table(out, table)
    print(f"wrote {out}: {len(table)} configurations, {len(table.seeds)} seeds, rungs {table.rungs}")


if __name__ == "__main__":
    main()
