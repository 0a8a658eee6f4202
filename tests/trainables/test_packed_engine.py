"""The packed engine gives the numbers of stock PEFT, whatever else is in the pack."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import FAMILIES, VOCABULARY, build
from support import lora

from lorafront.spaces import modules
from lorafront.trainables.config import ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenData, TokenRows, store
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.model_facts import model_facts
from lorafront.trainables.models import load_config
from lorafront.trainables.packed_engine import PackedEngine, PackedSession
from lorafront.trainables.peft_session import PeftSession, open_session
from lorafront.trainables.task import task_named

STEPS, BATCH = 6, 2
STYLES = ["llama", "phi-2", "gpt-2", "bert"]
MIXED = [
    {"rank": 4, "alpha": 8.0, "modules": "query+key+value", "learning_rate": 5e-3},
    {"rank": 16, "alpha": 16.0, "modules": "attention", "learning_rate": 1e-3, "scheduler": "cosine"},
    {"rank": 64, "alpha": 128.0, "modules": "all-linear", "learning_rate": 2e-3, "weight_decay": 0.1},
    {"rank": 6, "alpha": 3.0, "modules": "all-linear", "learning_rate": 1e-2, "warmup": 0.3},
]


def token_rows(task: str, count: int, seed: int) -> TokenRows:
    """Rows of unequal length that are not all noise."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        start, length = int(draw.integers(2, VOCABULARY)), int(draw.integers(5, 12))
        ids = [(start + 3 * i) % (VOCABULARY - 2) + 2 for i in range(length)]
        rows.append((ids, start % 2 if task == "seq_cls" else 2))
    return TokenRows.build(rows)


@dataclass
class Place:
    """A small model without dropout of its own, its data, and its bases."""

    family: str
    model: ModelConfig
    files: dict[str, Path]
    bases: BaseCache

    def trial(self, *, training: dict[str, Any] | None = None, seed: int = 0, steps: int = STEPS, **changes: Any):
        task = FAMILIES[self.family][0]
        labels = ("0", "1") if task == "seq_cls" else ()
        configuration = lora(**{"quantization": "fp32", "batch_size": BATCH, **changes})
        facts = model_facts(load_config(self.model), task_named(task))
        rows = steps * BATCH * configuration.gradient_accumulation
        return TrialConfig(
            task=task,
            model=self.model,
            training=TrainingConfig(rows=rows, **(training or {})),
            lora=configuration,
            targets=modules.resolve(configuration.modules, list(facts.linears)).targets,
            rungs=(rows // 2, rows),
            seed=seed,
            tokens=self.files[task],
            labels=labels,
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for task in ("causal_lm", "seq_cls"):
        made[task] = tmp_path_factory.mktemp("tokens") / f"{task}.safetensors"
        labels = ("0", "1") if task == "seq_cls" else ()
        store(made[task], TokenData(token_rows(task, 40, 0), token_rows(task, 12, 1), 1, {}, labels))
    return made


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> dict[str, Place]:
    return {
        name: Place(name, without_dropout(name, tmp_path_factory.mktemp("model")), files, BaseCache())
        for name in STYLES
    }


def without_dropout(family: str, folder: Path) -> ModelConfig:
    """A model whose base drops nothing by itself: stock PEFT draws its masks from another generator."""
    model = build(family, folder)
    file = folder / "config.json"
    kept = {name: 0.0 if "drop" in name else value for name, value in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(kept))
    return model


def stock(place: Place, config: TrialConfig) -> tuple[list[float], dict[str, Any], dict[str, torch.Tensor]]:
    """(loss of each step, evaluation, adapter) of stock PEFT."""
    session = open_session(config, place.bases)
    session.train(config.rows)
    losses = torch.stack(session._losses).tolist()
    measured = session.evaluate()
    adapter = {
        name.replace(".default", ""): p.detach().clone()
        for name, p in session.model.named_parameters()
        if p.requires_grad
    }
    session.close()
    return losses, measured, {name.replace(".modules_to_save", ""): value for name, value in adapter.items()}


def packed(
    place: Place, configs: list[TrialConfig]
) -> list[tuple[list[float], dict[str, Any], dict[str, torch.Tensor]]]:
    """The same of each trial of a pack."""
    engine = PackedEngine(configs[0], place.bases)
    try:
        sessions = [engine.open(config) for config in configs]
        engine.train({session: session.config.rows for session in sessions})
        losses = [torch.stack(session._losses).tolist() for session in sessions]
        engine.evaluate(sessions)
        return [
            (lost, session.evaluate(), {name: value.clone() for name, value in session.slot.numbers["values"].items()})
            for lost, session in zip(losses, sessions, strict=True)
        ]
    finally:
        engine.close()


@pytest.mark.parametrize("family", STYLES)
def test_a_mixed_pack_gives_the_numbers_of_stock_peft(places: dict[str, Place], family: str) -> None:
    """Loss at every step, evaluation and adapters of ranks 4 to 64 on different modules equal those trained alone."""
    place = places[family]
    configs = [place.trial(**changes) for changes in MIXED]
    alone = [stock(place, config) for config in configs]
    together = packed(place, configs)
    for (losses, measured, adapter), (others, other, values) in zip(alone, together, strict=True):
        print(family, losses, others, max(abs(a / b - 1) for a, b in zip(losses, others)))
        print({k: (v, other.get(k)) for k, v in measured.items() if other.get(k) != v})
        assert others == pytest.approx(losses, rel=1e-5)
        assert set(values) == set(adapter)
        for name, value in adapter.items():
            torch.testing.assert_close(values[name], value, rtol=0, atol=1e-4)
        assert other["eval_loss"] == pytest.approx(measured["eval_loss"], rel=1e-5)
