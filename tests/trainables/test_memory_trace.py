"""The peak that is traced without weights is the peak that is measured, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import FAMILIES, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import lora

from lorafront.spaces import modules
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.quantization import QUANTIZATIONS
from lorafront.trainables.config import ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenData, TokenRows
from lorafront.trainables.frozen_base import FrozenBase
from lorafront.trainables.memory_trace import trace
from lorafront.trainables.model_facts import model_facts
from lorafront.trainables.models import load_config
from lorafront.trainables.peft_session import PeftSession
from lorafront.trainables.task import task_named

LONGEST = 64
TRACED = ["llama", "qwen2", "phi-2", "gpt-2", "bert", "t5", "gemma", "flan-t5"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    return {family: build(family, tmp_path_factory.mktemp("model")) for family in TRACED}


def both(model: ModelConfig, family: str, configuration: LoraConfiguration, lengths: list[int], **training: object):
    """(measured, traced) peak bytes of a trial on rows of these lengths."""
    task, config = task_named(FAMILIES[family][0]), load_config(model)
    labels = ("0", "1") if task.new_head else ()
    facts = model_facts(config, task)
    trial = TrialConfig(
        task=task.name, model=model, training=TrainingConfig(rows=64, **training), lora=configuration,
        targets=modules.resolve(configuration.modules, list(facts.linears)).targets, rungs=(64,), seed=0,
        tokens=Path("nowhere"), labels=labels,
    )  # fmt: skip
    starts = [1 if task.new_head else length // 2 for length in lengths]
    rows = TokenRows.build([([7] * length, start) for length, start in zip(lengths, starts, strict=True)])
    base = FrozenBase(model, task, configuration.quantization, labels)
    base.references = {trial.tokens: {}}
    session = PeftSession(base, trial, TokenData(rows, rows, pad_id=0))
    session.close()
    return session.memory.allocated, trace(trial, config, task, rows).allocated


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_trace_equals_measurement(models: dict[str, ModelConfig], data: st.DataObject) -> None:
    """For any family, storage, rank, modules, dropout, bias, batch, length, checkpointing, accumulation, optimizer."""
    draw = data.draw
    family = draw(st.sampled_from(TRACED))
    configuration = lora(
        quantization=draw(st.sampled_from(QUANTIZATIONS)),
        rank=draw(st.sampled_from([1, 4, 13, 64])),
        modules=draw(st.sampled_from(["attention", "all-linear", *(["query+value"] if family != "gpt-2" else [])])),
        dropout=draw(st.sampled_from([0.0, 0.1])),
        bias=draw(st.sampled_from(["none", "all"])),
        batch_size=draw(st.integers(1, 5)),
        gradient_accumulation=draw(st.integers(1, 2)),
    )
    lengths = draw(st.lists(st.integers(4, LONGEST), min_size=1, max_size=4))
    training = {
        "gradient_checkpointing": draw(st.booleans()),
        "optimizer": draw(st.sampled_from(["adamw", "paged_adamw_8bit"])),
    }
    measured, traced = both(models[family], family, configuration, lengths, **training)
    assert traced == measured
