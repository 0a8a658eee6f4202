"""What leaves a search and trains elsewhere: recipes with their rows, merged models, trainings at full length."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY_LLAMA

from lorafront.search.export import export_front, tokens_of
from lorafront.search.paths import RootPaths
from lorafront.search.run import run_search
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable
from lorafront.search.tables import number
from lorafront.search.train_export import Length, train_export
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.objectives import OBJECTIVES
from lorafront.trainables.evaluate import tally
from lorafront.trainables.task import task_named

FORMATS = ["transformers", "trl", "axolotl", "llamafactory", "unsloth"]


@pytest.fixture(scope="module")
def searched(
    ray_session: None, qa_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StudyTable, RootPaths]:
    """A search of two trials by stock PEFT, on a quantized base and on a plain one."""
    search = parse_search(
        {
            "name": "answers",
            "model": str(TINY_LLAMA),
            "data": {"path": str(qa_file), "format": "question_answer", "max_length": 48, "eval_rows": 8},
            "space": {
                "rank": 4,
                "alpha": 8,
                "modules": "attention",
                "quantization": ["nf4", "bf16"],
                "dropout": 0.1,
                "learning_rate": 5e-3,
            },
            "training": {"rows": 32, "rungs": 2, "batch_size": 4},
            "budget": {"trials": 2},
            "sampler": "grid",
            "engine": "process",
            "early_stopping": "off",
            "start_points": {"recommended": False, "points": []},
        }
    )
    root = RootPaths(tmp_path_factory.mktemp("root"))
    return run_search(search, root), root


@pytest.fixture(scope="module")
def exported(searched: tuple[StudyTable, RootPaths], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both trials in every format, by number."""
    table, root = searched
    out = tmp_path_factory.mktemp("exports")
    return export_front(root.search("answers"), out, [trial.number for trial in table.complete], [*FORMATS, "merged"])


def number_of(table: StudyTable, kind: str) -> int:
    return next(index for index, trial in enumerate(table.complete) if trial.lora.quantization == kind)


def test_recipes_bring_the_rows_that_the_search_had(
    searched: tuple[StudyTable, RootPaths], exported: list[Path], qa_file: Path
) -> None:
    """Training and evaluation rows are all rows once, in the words of the format; the heads say what was measured."""
    table, _ = searched
    rows = exported[0].parent / "rows" / "pairs"
    train, held_out = (
        [json.loads(line) for line in (rows / name).read_text().splitlines()]
        for name in ("train.jsonl", "validation.jsonl")
    )
    raw = [json.loads(line) for line in qa_file.read_text().splitlines()]
    expected = {(f"Question: {row['question']}\nAnswer: ", row["answer"]) for row in raw}
    assert {(row["prompt"], row["completion"]) for row in [*train, *held_out]} == expected
    assert (len(train), len(held_out)) == (32, 8)
    for trial, folder in zip(table.complete, exported, strict=True):
        for name in FORMATS[1:]:
            text = (folder / f"{name}.yaml").read_text()
            assert f"# Trial {trial.number} of lorafront search answers" in text
            assert f"perplexity {number(trial.measurements['perplexity'], OBJECTIVES['perplexity'])}" in text
            assert "seed 0" in text
            assert "peft" in text
            assert not re.search(r"(^|[\s'\"])/\w", text, re.MULTILINE), "a path of this machine"
    info = json.loads((exported[0] / "dataset_info.json").read_text())
    assert all((exported[0] / entry["file_name"]).is_file() for entry in info.values())


@pytest.mark.slow
def test_the_script_trains_as_the_trial_did(searched: tuple[StudyTable, RootPaths], exported: list[Path]) -> None:
    """The script runs with transformers and PEFT alone, sees the same rows, and comes to about the same loss."""
    table, _ = searched
    index = number_of(table, "nf4")
    folder = exported[index]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, env=environment, capture_output=True)
    found = json.loads((folder / "trained" / "metrics.json").read_text())
    trial = table.complete[index].measurements
    assert found["eval_loss"] == pytest.approx(trial["eval_loss"], rel=0.25)
    assert found["perplexity"] < trial["base_perplexity"] / 2
    config = json.loads((folder / "trained" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_dropout"], config["lora_alpha"]) == (4, 0.1, table.complete[index].lora.alpha)
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_merged_models_measure_what_they_say(searched: tuple[StudyTable, RootPaths], exported: list[Path]) -> None:
    """A merged model loads without PEFT and bitsandbytes, and has the loss that its folder names beside the trial's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    table, root = searched
    tokens, task = tokens_of(table, root.search("answers")), task_named("causal_lm")
    for trial, folder in zip(table.complete, exported, strict=True):
        said = json.loads((folder / "merged" / "merged.json").read_text())
        model = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
        assert model.dtype == torch.bfloat16
        assert AutoTokenizer.from_pretrained(folder / "merged").eos_token
        found = task.metrics(tally(model, task, tokens.evaluation, tokens.pad_id, 4, torch.device("cpu")))
        measured = said["measured"]
        assert found["eval_loss"] == pytest.approx(measured[said["merged_into"]]["eval_loss"], rel=1e-5)
        assert min(entry["eval_loss"] for entry in measured.values()) == measured[said["merged_into"]]["eval_loss"]
        assert len(measured) == (2 if trial.lora.quantization == "nf4" else 1)
        assert said["trial_measured"]["perplexity"] == trial.measurements["perplexity"]
        assert found["perplexity"] == pytest.approx(trial.measurements["perplexity"], rel=0.05)


def test_an_export_without_formats_is_what_it_was(
    searched: tuple[StudyTable, RootPaths], exported: list[Path], tmp_path: Path
) -> None:
    """Formats add files and change none; without them there are neither files of trainers nor rows."""
    table, root = searched
    numbers = [trial.number for trial in table.complete]
    plain = export_front(root.search("answers"), tmp_path / "plain", numbers)
    assert not (tmp_path / "plain" / "rows").exists()
    for folder, richer in zip(plain, exported, strict=True):
        names = {file.name for file in folder.iterdir()}
        assert names < {file.name for file in richer.iterdir()}
        assert not names & {"train.py", "trl.yaml", "merged"}
        same = names - {
            "README.md",
            "adapter_config.json",
            "lorafront.json",
        }  # which name the folder that they stand in
        assert all((folder / name).read_bytes() == (richer / name).read_bytes() for name in same)


@pytest.mark.parametrize("kind", ["nf4", "bf16"])
def test_a_training_of_the_same_length_is_the_trial(
    kind: str, searched: tuple[StudyTable, RootPaths], exported: list[Path], tmp_path: Path
) -> None:
    """One epoch over the rows of the search gives the trial's loss to the last digit, and the same adapter."""
    table, _ = searched
    index = number_of(table, kind)
    record = train_export(exported[index], tmp_path / "full", Length(epochs=1))
    trial = table.complete[index].measurements
    assert record.measurements["eval_loss"] == trial["eval_loss"]
    assert record.measurements["peak_vram_gb"] == trial["peak_vram_gb"]
    for name in ("adapter_model.safetensors", "training_arguments.json"):
        assert (tmp_path / "full" / name).read_bytes() == (exported[index] / name).read_bytes()
    assert not (tmp_path / "full" / "training").exists()
    with pytest.raises(InvalidInput, match="holds a trained adapter"):
        train_export(exported[index], tmp_path / "full", Length(epochs=1))


@pytest.mark.slow
def test_a_training_that_was_interrupted_goes_on(exported: list[Path], tmp_path: Path) -> None:
    """Ctrl-C saves and exits with 5, the same command goes on, and the losses are those of one that never stopped."""
    said: list[int] = []
    length = Length(epochs=3)
    whole = train_export(exported[1], tmp_path / "whole", length, said=lambda report, _: said.append(report.rows))
    assert said == [32, 64, 96]
    out = tmp_path / "cut"
    command = [
        sys.executable,
        "-m",
        "lorafront.search.cli",
        "train",
        str(exported[1]),
        "--epochs",
        "3",
        "--out",
        str(out),
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(out.glob("training/trial/ckpt-32")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=100)
    assert running.returncode == 5, errors
    assert "the same command goes on" in errors
    changed = [*command[:6], "2", *command[7:]]
    other = subprocess.run(changed, check=False, capture_output=True, text=True)
    assert other.returncode == 2
    assert "training of something else" in other.stderr
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "96 of 96 rows: perplexity" in again.stdout
    facts = json.loads((out / "lorafront.json").read_text())
    assert facts["measurements"]["eval_loss"] == whole.measurements["eval_loss"]
    assert (out / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "whole" / "adapter_model.safetensors"
    ).read_bytes()


def test_other_data_is_trained_on(exported: list[Path], tmp_path: Path) -> None:
    """With other data it trains on all of its rows, and evaluates on a file of its own where told."""
    rows = [{"question": f"What is {i} times two?", "answer": f"It is {2 * i}."} for i in range(60)]
    for name, some in (("more", rows[:50]), ("own", rows[50:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    length = Length(epochs=0.5, data=str(tmp_path / "more.jsonl"), eval_data=str(tmp_path / "own.jsonl"))
    record = train_export(exported[1], tmp_path / "full", length)
    assert record.last is not None
    assert record.last.rows == 25  # the half of 50
    facts: dict[str, Any] = json.loads((tmp_path / "full" / "lorafront.json").read_text())
    assert facts["settings"]["data"]["path"].endswith("more.jsonl")
    assert not facts["settings"]["data"]["path"].startswith("/")


def test_what_cannot_be_trained_is_refused(exported: list[Path], tmp_path: Path) -> None:
    """A folder of several exports, one that is none, and a target with other files are each named."""
    for folder, reason in ((exported[0].parent, "holds several trials"), (tmp_path, "is no exported trial")):
        with pytest.raises(InvalidInput, match=reason):
            train_export(folder, tmp_path / "out", Length(epochs=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(InvalidInput, match="holds other files"):
        train_export(exported[0], tmp_path / "mine", Length(epochs=1))
