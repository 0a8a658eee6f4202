"""Whole searches of the other tasks, with objectives of every kind; their exports load by the lines of their README."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import PROJECT

from lorafront.search.export import export_front
from lorafront.search.front import front_of
from lorafront.search.paths import RootPaths
from lorafront.search.run import resume_search, run_search
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable
from lorafront.search.train_export import Length, train_export
from lorafront.spaces.errors import InvalidInput, StateUnreadable
from lorafront.trainables.data import load
from lorafront.trainables.evaluate import tally
from lorafront.trainables.task import task_named

FOLDERS = {"seq_cls": "tiny-bert", "seq_2_seq_lm": "tiny-t5"}
OWN = """
def trained_norm(model, tokenizer):
    return sum(float(p.norm()) for p in model.parameters() if p.requires_grad)
"""


def rows(task: str, start: int, count: int) -> str:
    found: list[dict[str, Any]] = []
    for i in range(start, start + count):
        if task == "seq_cls":
            word = ("dull", "fine", "superb")[i % 3]
            found.append({"text": f"a {word} film, number {i}", "label": word})
        else:
            found.append({"prompt": f"What follows {i}?", "completion": f"{i + 1} follows."})
    return "\n".join(map(json.dumps, found))


@pytest.fixture(scope="module", params=FOLDERS)
def searched(request, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, StudyTable, RootPaths]:
    """Three trials on a pretrained base, in two quantizations."""
    task, folder = request.param, tmp_path_factory.mktemp("search")
    (folder / "train.jsonl").write_text(rows(task, 0, 60))
    (folder / "other.jsonl").write_text(rows(task, 90, 12))
    (folder / "own_metrics.py").write_text(OWN)
    search = parse_search(
        {
            "name": "tasks",
            "model": str(PROJECT / "examples" / FOLDERS[task]),
            "task": task,
            "data": {
                "path": "train.jsonl",
                "format": "text_label" if task == "seq_cls" else "prompt_completion",
                "max_length": 32,
                "eval_rows": 12,
                "also_evaluate": {"other": "other.jsonl"},
            },
            "space": {
                "rank": [4, 8],
                "modules": "attention",
                "quantization": ["nf4", "bf16"],
                "bias": "none",
                "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
            },
            "objectives": [task_named(task).quality[0], "peak_vram_gb", "eval_other_loss", "own_metrics:trained_norm"],
            "training": {"rows": 32, "rungs": 2, "batch_size": 4},
            "budget": {"trials": 3},
        }
    )
    root = RootPaths(folder / "root")
    return task, run_search(search, root, near=folder), root


def test_a_search_measures_every_objective(searched: tuple[str, StudyTable, RootPaths]) -> None:
    """Quality, memory, the loss on a second set and a function: all trials complete, with a front over the four."""
    _, table, _ = searched
    assert [trial.outcome.stored for trial in table.counted if trial.outcome] == ["complete"] * 3
    names = [objective.name for objective in table.search.objective_list]
    assert all(isinstance(trial.measurements[name], float) for trial in table.complete for name in names)
    assert front_of(table)


def test_exports_load_by_the_lines_of_their_readme(searched: tuple[str, StudyTable, RootPaths], tmp_path: Path) -> None:
    """The lines of Python in an export's README run as they stand; the model they load measures what is reported."""
    name, _, root = searched
    task = task_named(name)
    tokens = load(next(root.tokens.glob("*.safetensors")))
    with contextlib.chdir(tmp_path):
        for folder in export_front(root.search("tasks"), Path("out")):
            lines = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
            assert lines is not None
            assert '"/' not in lines[1]  # no absolute path
            found: dict[str, Any] = {}
            exec(lines[1], found)  # what a user would paste
            sums = tally(found["model"], task, tokens.evaluation, tokens.pad_id, 4, torch.device("cpu"))
            reported = json.loads((folder / "lorafront.json").read_text())["measurements"]
            measured = task.metrics(sums)
            # bitsandbytes has another kernel for 4 bits in evaluation on some CPUs, which training cannot use.
            near = 5e-3 if found.get("BitsAndBytesConfig") else 1e-5
            assert measured["eval_loss"] == pytest.approx(reported["eval_loss"], rel=near)
            assert measured[task.quality[0]] == pytest.approx(reported[task.quality[0]], rel=4 * near)
            if name == "seq_cls":
                assert found["model"].config.id2label == {0: "dull", 1: "fine", 2: "superb"}


def test_own_code_that_changed_stops_a_resume(searched: tuple[str, StudyTable, RootPaths]) -> None:
    """Trials before and after an edit of an objective's function would not compare."""
    _, table, root = searched
    assert resume_search("tasks", root).trials == table.trials
    (Path(str(table.search.code)) / "own_metrics.py").write_text(OWN + "# edited\n")
    with pytest.raises(StateUnreadable, match="your own code changed"):
        resume_search("tasks", root)


@pytest.mark.slow
def test_other_formats_of_these_tasks(searched: tuple[str, StudyTable, RootPaths], tmp_path: Path) -> None:
    """The script and the merge know every task and measure about what the trial did; trainers of chats refuse."""
    task, table, root = searched
    trial = front_of(table)[0]
    with pytest.raises(InvalidInput, match=f"this search {task}; formats for it: peft, transformers, merged"):
        export_front(root.search("tasks"), tmp_path / "out", [trial.number], ["trl", "transformers"])
    (folder,) = export_front(root.search("tasks"), tmp_path / "out", [trial.number], ["transformers", "merged"])
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    script = json.loads((folder / "trained" / "metrics.json").read_text())
    said = json.loads((folder / "merged" / "merged.json").read_text())
    quality = task_named(task).quality[0]
    own = trial.measurements
    assert script["eval_loss"] == pytest.approx(own["eval_loss"], rel=0.35)
    assert said["measured"][said["merged_into"]][quality] == pytest.approx(own[quality], rel=0.1)
    if task == "seq_cls":
        assert json.loads((folder / "merged" / "config.json").read_text())["id2label"]["1"] == "fine"


def test_a_full_training_of_these_tasks(searched: tuple[str, StudyTable, RootPaths], tmp_path: Path) -> None:
    """A full training has the head, the second set and the function of the user, and loads like an export."""
    _, table, root = searched
    trial = front_of(table)[0]
    (folder,) = export_front(root.search("tasks"), tmp_path / "out", [trial.number])
    record = train_export(folder, tmp_path / "full", Length(epochs=2))
    assert record.measurements["eval_loss"] < trial.measurements["eval_loss"]
    assert {"eval_other_loss", "trained_norm"} <= set(record.measurements)
    assert {file.name for file in folder.iterdir()} == {file.name for file in (tmp_path / "full").iterdir()}
