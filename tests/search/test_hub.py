"""A name on the hub, from `check` to an exported adapter, through the hub's real clients and a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from local_hub import COMMIT, local_hub
from support import TINY_LLAMA

SEARCH = """
name: hub
model: someone/tiny-llama
data: {path: someone/questions, format: question_answer, max_length: 64, train_rows: 40, eval_rows: 4}
space: {rank: 4, alpha: 8, modules: attention, quantization: bf16, dropout: 0.0, bias: none, learning_rate: 1e-3}
training: {rows: 8, rungs: 1, batch_size: 4}
budget: {trials: 1}
"""


@pytest.fixture
def command(tmp_path: Path, qa_file: Path):
    """Run the command line against a hub that holds tiny-llama and forty questions."""
    data = tmp_path / "questions"
    data.mkdir()
    shutil.copy(qa_file, data / "train.jsonl")
    pickled = tmp_path / "pickled"
    shutil.copytree(TINY_LLAMA, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    models = {"someone/tiny-llama": TINY_LLAMA, "someone/pickled": pickled}
    (tmp_path / "search.yaml").write_text(SEARCH)
    with local_hub(models, {"someone/questions": data}) as (address, fetched):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            started = [sys.executable, "-m", "lorafront.search.cli", *arguments]
            return subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

        yield run, fetched


@pytest.mark.slow
def test_a_hub_name_is_checked_pinned_downloaded_and_run(command, tmp_path: Path) -> None:
    """`check` says what a run downloads and fetches no weights; `run` trains on the commit that was checked."""
    run, fetched = command
    checked = run("check", "search.yaml")
    assert checked.returncode == 0, checked.stderr
    assert "# download: 2.2 MB of weights of someone/tiny-llama, in 1 file" in checked.stdout
    assert f"revision: '{COMMIT}'" in checked.stdout
    assert "model.safetensors" not in fetched
    done = run("run", "search.yaml")
    assert done.returncode == 0, done.stderr
    assert fetched.count("model.safetensors") == 1
    again = run("check", "search.yaml", "--root", "other")
    assert "# download: nothing, the weights of someone/tiny-llama are in the local cache" in again.stdout
    assert run("export", "hub", "--out", "out").returncode == 0
    config = json.loads(next((tmp_path / "out").glob("trial-*/adapter_config.json")).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/tiny-llama", COMMIT)


def test_a_hub_model_without_safetensors_is_refused(command, tmp_path: Path) -> None:
    """Before a trial starts, and without a download of its weights."""
    run, fetched = command
    (tmp_path / "search.yaml").write_text(SEARCH.replace("someone/tiny-llama", "someone/pickled"))
    checked = run("check", "search.yaml")
    assert checked.returncode == 2
    assert "search.yaml:3:1  model: someone/pickled has no model*.safetensors" in checked.stderr
    assert "pytorch_model.bin" not in fetched


def test_an_unknown_hub_name_is_refused(command, tmp_path: Path) -> None:
    """One line that names model and data."""
    run, _ = command
    (tmp_path / "search.yaml").write_text(SEARCH.replace("someone/", "nobody/"))
    checked = run("check", "search.yaml")
    assert checked.returncode == 2
    assert "nobody/tiny-llama is no model folder in the current folder" in checked.stderr
    assert "nobody/questions is no data set in the current folder" in checked.stderr
