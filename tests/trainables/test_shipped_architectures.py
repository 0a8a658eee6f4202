"""Shipped architectures are those of the models whose names they carry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import lora

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.config import ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenRows
from lorafront.trainables.memory_model import MemoryModel, Shapes
from lorafront.trainables.memory_trace import trace
from lorafront.trainables.model_facts import model_facts, natural_task
from lorafront.trainables.models import load_architecture
from lorafront.trainables.shipped_architectures import SHIPPED, shipped_config
from lorafront.trainables.task import task_named

# Parameters as the models' own cards or their safetensors say; of BERT with a classifier of two labels.
PARAMETERS = {
    "bert-base": 109_483_778,
    "gpt2": 124_439_808,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "t5-large": 737_668_096,
    "llama-3.2-1b": 1_235_814_400,
    "phi-2": 2_779_683_840,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-14b": 14_770_033_664,
    "llama-3.1-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", list(SHIPPED))
def test_parameters_are_those_of_the_model(name: str) -> None:
    """To the last one, from the dimensions alone."""
    config = shipped_config(name)
    assert model_facts(config, task_named(natural_task(config))).parameters == PARAMETERS[name]


def test_closed_form_of_seven_billion_parameters() -> None:
    """The 32 layers of Mistral in NF4, predicted from steps of two and three, are those of the whole model's trace."""
    config, task, one = shipped_config("mistral-7b"), task_named("causal_lm"), lora(quantization="nf4", rank=16)
    training, shapes = TrainingConfig(rows=64), Shapes(2, 256)
    trial = TrialConfig(
        task=task.name, model=ModelConfig(name="m"), training=training, rungs=(64,), seed=0, tokens=Path("t"),
        lora=one.model_copy(update={"batch_size": 2}), targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    )  # fmt: skip
    whole = trace(trial, config, task, TokenRows.build([([0] * 256, 1), ([0] * 255, 1)])).allocated
    predicted = MemoryModel(config, task).predict(one, training, shapes)
    assert predicted.total == pytest.approx(whole, rel=1e-3)


def test_an_architecture_needs_no_weights(tmp_path: Path) -> None:
    """A folder that holds nothing but a config will do, and goes before a shipped architecture of its name."""
    folder = tmp_path / "only-config"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 3}))
    assert load_architecture(str(folder)).num_hidden_layers == 3
    assert load_architecture("gpt2").num_hidden_layers == 12


def test_an_unknown_architecture_says_what_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was probably meant."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidInput, match=r"model: .*Did you mean 'llama-3.1-8b'\? Shipped architectures: bert-base"):
        load_architecture("llama3.1-8b")
