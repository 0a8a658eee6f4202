"""Base models: facts without weights, adapters that leave the base as it was, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import MakeTrial, lora
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.modules import EVERYTHING, GROUPS, ModuleProblem, resolve
from lorafront.trainables.causal_lm import CAUSAL_LM
from lorafront.trainables.config import DataConfig, ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenData
from lorafront.trainables.models import BaseCache, load_config, load_tokenizer, model_facts, resident_tensors
from lorafront.trainables.peft_session import open_session

SMALL: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "mistral": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 1},
    "qwen3": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "head_dim": 32},
    "phi": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "phi3": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "pad_token_id": 0},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gemma": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "head_dim": 32},
}  # fmt: skip


def small_config(kind: str) -> PretrainedConfig:
    return AutoConfig.for_model(kind, vocab_size=2048, **SMALL[kind])


@pytest.mark.parametrize("kind", SMALL)
def test_groups_resolve_on_real_architectures(kind: str) -> None:
    """On each architecture attention and mlp resolve to disjoint modules in every layer, and never to the head."""
    linears = list(model_facts(small_config(kind), CAUSAL_LM).linears)
    attention, mlp = set(resolve("attention", linears).names), set(resolve("mlp", linears).names)
    assert attention
    assert mlp
    assert not attention & mlp
    assert attention | mlp == set(resolve(EVERYTHING, linears).names)
    for group in GROUPS:
        try:
            names = resolve(group, linears).names
        except ModuleProblem as error:
            assert "fuses" in str(error)  # noqa: PT017  # either it resolves, or it says why it cannot
        else:
            layers = {part for name in names for part in name.split(".") if part.isdigit()}
            assert layers == {"0", "1"}


@pytest.fixture
def phi(tmp_path: Path) -> ModelConfig:
    """A Phi-2-style model, whose linears have biases."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(small_config("phi")).save_pretrained(tmp_path / "phi")
    return ModelConfig(name=str(tmp_path / "phi"))


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.parametrize("quantization", ["fp32", "nf4"])
def test_detaching_leaves_the_base_bit_identical(
    phi: ModelConfig, token_file: tuple[Path, TokenData], data_config: DataConfig, bias: str, quantization: str
) -> None:
    """A trial that trains adapters and biases gives the base back as it took it, for the next trial."""
    cache = BaseCache()
    base = cache.get(phi, CAUSAL_LM, quantization)
    before = [tensor.clone() for tensor in resident_tensors(base.model)]
    trial = TrialConfig(
        task="causal_lm",
        model=phi,
        training=TrainingConfig(rows=16, gradient_checkpointing=bias == "all"),
        lora=lora(bias=bias, quantization=quantization, learning_rate=1e-2),
        targets=("q_proj", "dense"),
        rungs=(16,),
        seed=0,
        tokens=token_file[0],
    )
    session = open_session(trial, cache)
    session.train(16)
    changed = [name for name, p in session.model.named_parameters() if p.requires_grad and name.endswith("bias")]
    assert bool(changed) == (bias != "none")
    session.close()
    after = list(resident_tensors(base.model))
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())
    assert cache.get(phi, CAUSAL_LM, quantization) is base


def test_cache_holds_one_base(make_trial: MakeTrial) -> None:
    """Asking for another quantization replaces the base; asking again for the same one does not."""
    cache, model = BaseCache(), make_trial().model
    first = cache.get(model, CAUSAL_LM, "bf16")
    assert cache.get(model, CAUSAL_LM, "bf16") is first
    assert cache.get(model, CAUSAL_LM, "nf4") is not first
    assert cache.get(model, CAUSAL_LM, "bf16") is not first


def test_missing_and_foreign_models_are_refused(tmp_path: Path) -> None:
    """A missing folder, a folder without config, and pickled weights are each refused before anything is loaded."""
    with pytest.raises(InvalidInput, match="does not exist"):
        load_config(ModelConfig(name="./nowhere"))
    with pytest.raises(InvalidInput, match=r"no config\.json"):
        load_tokenizer(ModelConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InvalidInput, match="pickled weights are not loaded"):
        load_config(ModelConfig(name=str(tmp_path)))


def test_unknown_hub_name_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub name that cannot be loaded names the current folder and the hub, in one line."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidInput, match=r"no model folder in the current folder .* Hugging Face hub") as caught:
        load_config(ModelConfig(name="nobody/nothing"))
    assert "\n" not in str(caught.value)
