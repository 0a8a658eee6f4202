"""Adapters in MLflow's registry: what its own loader gives back, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from local_hub import COMMIT, local_hub
from mlflow_server import served
from support import PROJECT, TINY_LLAMA

from lorafront.search.export import checkpoint_of
from lorafront.search.import_results import Reading, import_results
from lorafront.search.mlflow_tracker import open_tracking, sync
from lorafront.search.paths import RootPaths
from lorafront.search.register import register
from lorafront.search.run import run_search
from lorafront.search.search_file import parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import StudyTable, TrialRecord, read_study
from lorafront.spaces.errors import CheckpointInvalid, InvalidInput, StateUnreadable
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

# MLflow says so of a class of its own when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")


def searched(root: RootPaths, rows: Path, **changes: Any) -> StudyTable:
    """Every quantization once."""
    raw = {
        "name": "small", "model": str(TINY_LLAMA),
        "data": {"path": str(rows), "format": "question_answer", "max_length": 48, "eval_rows": 8},
        "space": {"rank": 4, "alpha": 8, "modules": "attention", "quantization": ["nf4", "int8", "bf16"],
                  "dropout": 0.0, "bias": "none", "learning_rate": 5e-3},
        "training": {"rows": 16, "rungs": 1, "batch_size": 4}, "budget": {"trials": 3}, "sampler": "grid",
        "early_stopping": "off", "start_points": {"recommended": False},
    }  # fmt: skip
    return run_search(parse_search({**raw, **changes}), root)


@pytest.fixture
def told(tmp_path: Path) -> RootPaths:
    """A study of two trials that nobody trained."""
    root = RootPaths(tmp_path / "told")
    root.search("small").folder.mkdir(parents=True)
    search = parse_search({"name": "small", "model": "m", "data": {"path": "d"}, "space": {"dropout": 0.0}})
    ledger = StudyLedger(root.search("small").study_db, search, create=True)
    for perplexity in (9.0, 8.0):
        number, _ = ledger.ask() or (-1, None)
        ledger.tell(number, Report(16, {"perplexity": perplexity, "peak_vram_gb": 2.0}, Outcome.COMPLETE))
    return root


def test_what_is_no_trial_at_full_fidelity_and_no_name_is_refused(told: RootPaths) -> None:
    """With what would do."""
    paths = told.search("small")
    with pytest.raises(InvalidInput, match=r"trial 9 did not finish at full fidelity; those that did: \[0, 1\]"):
        register(paths, 9, "mine")
    for name in ("", " ", "a/b", "a:b", "a'b"):
        with pytest.raises(InvalidInput, match="without slash, colon and quotes"):
            register(paths, 0, name)


def test_an_adapter_that_is_gone_or_damaged_is_refused(told: RootPaths) -> None:
    """Before MLflow hears of anything."""
    paths = told.search("small")
    checkpoint = checkpoint_of(paths, read_study(paths.study_db).complete[0])
    with pytest.raises(StateUnreadable, match="has no adapter any more"):
        register(paths, 0, "mine")
    checkpoint.mkdir(parents=True)
    with pytest.raises(CheckpointInvalid, match="MANIFEST"):
        register(paths, 0, "mine")
    assert not told.mlflow_db.exists()


def test_an_imported_search_has_nothing_to_register(tmp_path: Path) -> None:
    """It holds numbers and no adapters."""
    (tmp_path / "t.csv").write_text("rank,learning_rate,perplexity,peak_vram_gb\n8,1e-4,10,4\n16,1e-4,9,5\n")
    root = RootPaths(tmp_path / "root")
    import_results(tmp_path / "t.csv", "paper", root, Reading({}, None, "m", None, (), replicates=False))
    with pytest.raises(InvalidInput, match="read-only"):
        register(root.search("paper"), 0, "mine")


@pytest.fixture(scope="module")
def real(ray_session: None, qa_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RootPaths:
    """Three adapters that were trained."""
    root = RootPaths(tmp_path_factory.mktemp("real"))
    searched(root, qa_file)
    return root


@contextmanager
def store(root: RootPaths) -> Iterator[Any]:
    """MLflow's own functions, at the store of the searches."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{root.mlflow_db.absolute()}")
    yield mlflow
    mlflow.set_tracking_uri(None)


@pytest.fixture
def at_store(real: RootPaths) -> Iterator[Any]:
    with store(real) as mlflow:
        yield mlflow


def stock(root: RootPaths, trial: TrialRecord, **arguments: Any) -> Any:
    """The same by transformers and PEFT alone."""
    import torch
    import transformers
    from peft import PeftModel

    checkpoint = checkpoint_of(root.search("small"), trial)
    base = json.loads((checkpoint / "base.json").read_text())
    bits = transformers.BitsAndBytesConfig(**base["bitsandbytes"]) if base["bitsandbytes"] else None
    model = getattr(transformers, base["auto_class"]).from_pretrained(
        read_study(root.search("small").study_db).search.model.name,
        dtype=getattr(torch, trial.measurements["compute_dtype"]), quantization_config=bits, **arguments,
    )  # fmt: skip
    return PeftModel.from_pretrained(model, checkpoint / "adapter").eval()


def same_logits(one: Any, other: Any) -> bool:
    import torch

    ids = torch.arange(5, 45).view(2, 20)
    with torch.no_grad():
        return bool(torch.equal(one(ids).logits, other(ids).logits))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8", "bf16"])
def test_mlflows_own_loader_gives_back_the_trial(real: RootPaths, at_store: Any, kind: str) -> None:
    """Its logits are those of stock PEFT on the same base, to the last digit; the version says what was measured."""
    from peft import PeftModel

    paths = real.search("small")
    trial = next(one for one in read_study(paths.study_db).complete if one.lora.quantization == kind)
    found = register(paths, trial.number, f"small-{kind}")
    loaded = at_store.transformers.load_model(found.uri)
    assert isinstance(loaded.model, PeftModel)
    assert same_logits(loaded.model.eval(), stock(real, trial))
    assert loaded.tokenizer.decode([5, 6])
    client = at_store.MlflowClient()
    version = client.get_model_version(found.model, str(found.version))
    run = client.get_run(version.run_id)
    assert (run.data.tags["lorafront.trial"], run.info.status) == (str(trial.number), "FINISHED")
    assert version.tags["perplexity"] == str(trial.measurements["perplexity"])
    assert {"peak_vram_gb", "lorafront.search", "configuration"} <= version.tags.keys()
    assert f"Trial {trial.number} of lorafront search small" in version.description
    assert "not copied" in found.base if kind == "bf16" else "stored" in found.base
    folder = Path(urlsplit(version.source).path)
    assert (folder / "model").is_dir() == (kind != "bf16")
    assert not list(folder.rglob("*.bin"))


@pytest.mark.slow
def test_the_same_trial_is_registered_once_under_a_name_and_its_files_are_written_once(
    real: RootPaths, at_store: Any
) -> None:
    """A second trial is a further version; another name shares what is stored."""
    paths = real.search("small")
    first, second = register(paths, 0, "twice"), register(paths, 1, "twice")
    assert (first.version, second.version) == (1, 2)
    with pytest.raises(InvalidInput, match="trial 0 of small is version 1 of twice already"):
        register(paths, 0, "twice")
    other = register(paths, 0, "other")
    client = at_store.MlflowClient()
    sources = [client.get_model_version(one.model, str(one.version)).source for one in (first, other)]
    assert sources[0] == sources[1]
    assert len(client.search_model_versions("name = 'twice'")) == 2


@pytest.mark.slow
def test_a_server_keeps_models_too(real: RootPaths, tmp_path: Path, monkeypatch) -> None:
    """Adapter and base go there with the runs, and come back from there."""
    import mlflow

    paths = real.search("small")
    trial = next(one for one in read_study(paths.study_db).complete if one.lora.quantization == "nf4")
    with served(tmp_path) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        sync(open_tracking(read_study(paths.study_db).search, real), paths)
        found = register(paths, trial.number, "served")
        assert same_logits(mlflow.transformers.load_model(found.uri).model.eval(), stock(real, trial))
        version = mlflow.MlflowClient(address).get_model_version("served", "1")
    assert version.tags["lorafront.trial"] == str(trial.number)
    assert list((tmp_path / "kept").rglob("adapter_model.safetensors"))


@pytest.mark.slow
def test_runs_that_mlflow_lacks_and_servers_that_are_away_are_said(
    real: RootPaths, tmp_path: Path, monkeypatch
) -> None:
    """With the command that mends it."""
    paths = real.search("small")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InvalidInput, match="cannot be reached"):
        register(paths, 0, "away")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(InvalidInput, match="no run of trial 0; write it with: lorafront mlflow-sync small"):
        register(paths, 0, "empty")


@pytest.mark.slow
def test_a_classifier_comes_back_with_its_head_and_its_labels(ray_session: None, tmp_path: Path) -> None:
    """Three classes on a base that has no head."""
    words = ("dull", "fine", "superb")
    rows = [{"text": f"a {words[i % 3]} film, number {i}", "label": words[i % 3]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    root = RootPaths(tmp_path / "root")
    data = {"path": str(tmp_path / "rows.jsonl"), "format": "text_label", "max_length": 32, "eval_rows": 8}
    table = searched(
        root, tmp_path / "rows.jsonl", task="seq_cls", data=data, model=str(PROJECT / "examples" / "tiny-bert"),
        objectives=["accuracy", "peak_vram_gb"], budget={"trials": 3},
    )  # fmt: skip
    for trial in table.complete:
        found = register(root.search("small"), trial.number, "classes")
        with store(root) as mlflow:
            loaded = mlflow.transformers.load_model(found.uri)
        labels = {"id2label": dict(enumerate(words)), "num_labels": 3}
        assert same_logits(loaded.model.eval(), stock(root, trial, **labels))
        assert loaded("a fine film")[0]["label"] in words


@pytest.mark.slow
def test_a_base_from_the_hub_is_named_with_the_commit_of_the_search(qa_file: Path, tmp_path: Path) -> None:
    """Nothing of it is stored; whoever loads the model gets that commit from the hub."""
    data = tmp_path / "questions"
    data.mkdir()
    shutil.copy(qa_file, data / "train.jsonl")
    search = {
        "name": "hub", "model": "someone/tiny-llama", "data": {"path": "someone/questions", "format": "question_answer",
        "max_length": 64, "train_rows": 40, "eval_rows": 4}, "space": {"rank": 4, "alpha": 8, "modules": "attention",
        "quantization": "bf16", "dropout": 0.0, "bias": "none", "learning_rate": 1e-3},
        "training": {"rows": 8, "rungs": 1, "batch_size": 4}, "budget": {"trials": 1},
    }  # fmt: skip
    (tmp_path / "search.yaml").write_text(json.dumps(search))
    load = (
        "import lorafront.search.environment, mlflow; mlflow.set_tracking_uri('sqlite:///runs/mlflow.db'); "
        "print(type(mlflow.transformers.load_model('models:/mine/1').model).__name__)"
    )
    with local_hub({"someone/tiny-llama": TINY_LLAMA}, {"someone/questions": data}) as (address, _):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        cli = ["-m", "lorafront.search.cli"]
        for arguments in ([*cli, "run", "search.yaml"], [*cli, "register", "hub", "0", "--as", "mine"], ["-c", load]):
            done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True,
                                  text=True, check=False)  # fmt: skip
            assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("PeftModelForCausalLM")
    (described,) = (tmp_path / "runs" / "mlflow-artifacts").rglob("MLmodel")
    assert f"source_model_revision: '{COMMIT}'" in described.read_text()
    assert not list(described.parent.glob("model/*.safetensors"))


@pytest.mark.slow
def test_a_task_that_has_no_pipeline_is_refused_with_what_else_there_is(ray_session: None, tmp_path: Path) -> None:
    """Transformers has none for T5 any more."""
    pairs = [{"prompt": f"What follows {i}?", "completion": f"{i + 1} follows."} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    root = RootPaths(tmp_path / "root")
    data = {"path": str(tmp_path / "rows.jsonl"), "format": "prompt_completion", "max_length": 32, "eval_rows": 8}
    space = {"rank": 4, "modules": "attention", "quantization": "bf16", "bias": "none"}
    table = searched(root, tmp_path, task="seq_2_seq_lm", data=data, model=str(PROJECT / "examples" / "tiny-t5"),
                     space=space, budget={"trials": 1}, sampler="random")  # fmt: skip
    assert table.complete
    with pytest.raises(InvalidInput, match="which has none for seq_2_seq_lm; instead: lorafront export small"):
        register(root.search("small"), 0, "mine")
