"""Shared small things: the pretrained model, a text, token rows, frozen bases, trial configurations."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before everything that reads it

import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import pytest
import servers
from hypothesis import HealthCheck, settings
from servers import PASSWORD, Postgres
from support import TINY_LLAMA, MakeTrial, lora

from lorafront.spaces import modules
from lorafront.trainables.config import DataConfig, ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenData, prepare, store
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.model_facts import ModelFacts, model_facts
from lorafront.trainables.models import load_config, load_tokenizer
from lorafront.trainables.row_sets import read_sets
from lorafront.trainables.task import task_named

if TYPE_CHECKING:
    from trained_alone import Trained

# A slow machine makes no test fail.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    if why := servers.why_no_postgres():
        pytest.skip(why)
    with servers.started_postgres() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """New searches go there."""
    monkeypatch.setenv("LORAFRONT_DATABASE", postgres_server.url())
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return postgres_server


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60 kB of English about Python."""
    path = tmp_path_factory.mktemp("text") / "reference.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics))[:60_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def qa_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty questions with answers, as JSON lines."""
    path = tmp_path_factory.mktemp("qa") / "rows.jsonl"
    rows = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."} for i in range(40)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_model() -> ModelConfig:
    return ModelConfig(name=str(TINY_LLAMA))


@pytest.fixture(scope="session")
def facts(tiny_model: ModelConfig) -> ModelFacts:
    return model_facts(load_config(tiny_model), task_named("causal_lm"))


@pytest.fixture(scope="session")
def data_config(text_file: Path) -> DataConfig:
    return DataConfig(path=str(text_file), max_length=32, train_rows=64, eval_rows=8)


@pytest.fixture(scope="session")
def token_file(
    data_config: DataConfig, tiny_model: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TokenData]:
    task, tokenizer = task_named("causal_lm"), load_tokenizer(tiny_model)
    file, tokens = prepare(
        read_sets(data_config, task),
        data_config,
        task,
        tokenizer,
        tmp_path_factory.mktemp("tokens"),
        train_batch=4,
        eval_batch=4,
    )
    store(file, tokens)
    return file, tokens


@pytest.fixture(scope="session")
def bases() -> BaseCache:
    return BaseCache()


@pytest.fixture(scope="session")
def make_trial(
    tiny_model: ModelConfig, data_config: DataConfig, token_file: tuple[Path, TokenData], facts: ModelFacts
) -> MakeTrial:
    """Build a trial: keywords of LORA change the configuration, the others the trial."""

    def make(
        *, training: dict[str, Any] | None = None, rungs: tuple[int, ...] = (16, 32), seed: int = 0, **changes: Any
    ) -> TrialConfig:
        configuration = lora(**changes)
        return TrialConfig(
            task="causal_lm",
            model=tiny_model,
            training=TrainingConfig(rows=rungs[-1], **(training or {})),
            lora=configuration,
            targets=modules.resolve(configuration.modules, list(facts.linears)).targets,
            rungs=rungs,
            seed=seed,
            tokens=token_file[0],
        )

    return make


@pytest.fixture(scope="session")
def answered(qa_file: Path, bases: BaseCache, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A search of two trials on questions and answers, trained in this process: in nf4, and in bf16."""
    from trained_alone import trained_alone  # and with it Optuna

    from lorafront.search.search_file import parse_search

    search = parse_search(
        {
            "name": "answered", "model": str(TINY_LLAMA), "sampler": "grid", "budget": {"trials": 2},
            "data": {"path": str(qa_file), "format": "question_answer", "max_length": 48, "eval_rows": 8},
            "space": {"rank": 4, "alpha": 8, "modules": "query+value", "quantization": ["nf4", "bf16"],
                      "dropout": 0.1, "learning_rate": 2e-2},
            "training": {"rows": 32, "rungs": 1, "batch_size": 4}, "start_points": {"recommended": False},
            "early_stopping": "off", "engine": "process",
        }
    )  # fmt: skip
    return trained_alone(search, tmp_path_factory.mktemp("answered"), bases)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of a session, with two GPUs that are not there: starting it costs several seconds."""
    from lorafront.search.placement import Devices
    from lorafront.search.ray_cluster import RayCluster

    with RayCluster([Devices("rehearsed", 1, 2)]) as cluster:
        cluster.wait()
        yield
