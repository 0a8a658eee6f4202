"""Which models keep the rows of a batch apart is known from their config, and is what the packed engine finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import FAMILIES, small_config
from support import MakeTrial
from transformers import AutoConfig, PretrainedConfig

from lorafront.trainables.engines import why_not_packed
from lorafront.trainables.mixed_rows import why_mixed
from lorafront.trainables.model_facts import head_modules, model_facts, without_weights
from lorafront.trainables.packed_base import PROBE_ROWS, NotPackable, PackedBase
from lorafront.trainables.task import task_named

_WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
PACKED = [family for family, (task, *_) in FAMILIES.items() if task != "seq_2_seq_lm"]
# Model type to (task, what makes it small, what is said of it).
MIXED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mixtral": ("causal_lm", {"num_key_value_heads": 1, "num_local_experts": 4}, "experts"),
    "qwen2_moe": (
        "causal_lm",
        {"num_key_value_heads": 1, "num_experts": 4, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
        "experts",
    ),
    "granitemoe": ("causal_lm", {"num_key_value_heads": 1, "num_local_experts": 4}, "experts"),
    "albert": ("seq_cls", {"embedding_size": 32}, "several times"),
}


def found_by_the_engine(config: PretrainedConfig, task: str) -> bool:
    """Whether the packed engine takes a model with random weights."""
    one = task_named(task)
    model = one.auto_class().from_config(config).requires_grad_(requires_grad=False)
    try:
        PackedBase(model, torch.float32, tuple(head_modules(model)) if one.new_head else ())
    except NotPackable:
        return False
    return True


@pytest.mark.parametrize("family", PACKED)
def test_families_keep_rows_apart(family: str, make_trial: MakeTrial) -> None:
    """What people fine-tune is packed, by the facts and by the engine."""
    task, config = FAMILIES[family][0], small_config(family)
    facts = model_facts(config, task_named(task))
    assert (facts.mixed, facts.odd_head) == ("", ())
    trial = make_trial().model_copy(update={"task": task})
    assert why_not_packed(trial, facts, predicted=True) == ""
    assert found_by_the_engine(config, task)


@pytest.mark.parametrize("kind", MIXED)
def test_models_that_mix_rows_are_left_to_stock_peft(kind: str, make_trial: MakeTrial) -> None:
    """Experts and layers that are used again are named; whatever the engine refuses is among them."""
    task, sizes, reason = MIXED[kind]
    facts = model_facts(AutoConfig.for_model(kind, vocab_size=512, **{**_WIDE, **sizes}), task_named(task))
    assert reason in facts.mixed
    assert facts.mixed in why_not_packed(make_trial(), facts, predicted=True)


@pytest.mark.parametrize("kind", ["qwen2_moe", "albert"])
def test_the_engine_refuses_them(kind: str) -> None:
    """The facts only say it earlier."""
    task, sizes, _ = MIXED[kind]
    assert not found_by_the_engine(AutoConfig.for_model(kind, vocab_size=512, **{**_WIDE, **sizes}), task)


def test_a_linear_on_tokens_is_found() -> None:
    """A layer that puts the tokens of all rows on end is named; a pass that fails halfway is no reason by itself."""
    model = without_weights(small_config("llama"), task_named("causal_lm"), ())
    mlp = model.model.layers[1].mlp
    own, called = mlp.forward, []

    def flat(x: torch.Tensor) -> torch.Tensor:
        called.append(x.shape[0])
        return own(x.flatten(0, 1)).view(x.shape)

    mlp.forward = flat
    assert "model.layers.1.mlp.gate_proj takes the tokens of all rows" in why_mixed(model)
    assert called == [PROBE_ROWS]
    mlp.forward = lambda x: x * x.sum().item()  # which has no content here
    assert why_mixed(model) == ""
    assert not any(module._forward_pre_hooks for module in model.modules())
