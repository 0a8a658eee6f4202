"""Base models: facts without weights, adapters that leave the base as it was, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import build
from support import MakeTrial, lora

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.causal_lm import CAUSAL_LM
from lorafront.trainables.config import DataConfig, ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenData
from lorafront.trainables.frozen_base import BaseCache, resident_tensors
from lorafront.trainables.models import load_config, load_tokenizer
from lorafront.trainables.peft_session import open_session


@pytest.fixture
def phi(tmp_path: Path) -> ModelConfig:
    """A Phi-2-style model, whose linears have biases."""
    return build("phi-2", tmp_path / "phi")


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.parametrize("quantization", ["fp32", "nf4"])
def test_detaching_leaves_the_base_bit_identical(
    phi: ModelConfig, token_file: tuple[Path, TokenData], data_config: DataConfig, bias: str, quantization: str
) -> None:
    """A trial that trains adapters and biases gives the base back as it took it, for the next trial."""
    cache = BaseCache()
    base = cache.get(phi, CAUSAL_LM, quantization)
    before = [tensor.clone() for tensor in resident_tensors(base.model)]
    hooks = [len(module._forward_hooks) for module in base.model.modules()]
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
    assert [len(module._forward_hooks) for module in base.model.modules()] == hooks
    assert cache.get(phi, CAUSAL_LM, quantization) is base


@pytest.mark.parametrize("room", [1 / 16, 0.0])
def test_cache_holds_what_there_is_room_for(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, room: float
) -> None:
    """Asking again gives the same base, unless another one had to take its place; what was measured on it stays."""
    monkeypatch.setattr("lorafront.trainables.frozen_base.SHARE_OF_MEMORY", room)
    cache, model = BaseCache(), make_trial().model
    first = cache.get(model, CAUSAL_LM, "bf16")
    first.references[Path("tokens")] = {"perplexity": 7.0}
    assert cache.get(model, CAUSAL_LM, "bf16") is first
    assert cache.get(model, CAUSAL_LM, "nf4") is not first
    again = cache.get(model, CAUSAL_LM, "bf16")
    assert (again is first) == (room > 0)
    assert again.references[Path("tokens")] == {"perplexity": 7.0}


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
