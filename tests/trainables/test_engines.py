"""What is packed and what is not: every reason is said in words, and a pack has one base and one shape of batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from architectures import build
from support import MakeTrial

from lorafront.trainables.config import ModelConfig
from lorafront.trainables.engines import base_key, pack_key, why_not_packed
from lorafront.trainables.model_facts import ModelFacts, model_facts
from lorafront.trainables.models import load_config
from lorafront.trainables.task import task_named


def test_what_differs_inside_a_pack_has_one_key(make_trial: MakeTrial) -> None:
    """Rank, alpha, modules, dropout, rates, schedule, seed and length may differ; base, batch and paging may not."""
    key = pack_key(make_trial())
    inside = [
        {"rank": 64}, {"alpha": 1.0}, {"modules": "mlp"}, {"dropout": 0.3}, {"learning_rate": 1e-5},
        {"scheduler": "cosine"}, {"warmup": 0.5}, {"weight_decay": 0.1}, {"seed": 7}, {"rungs": (8, 64)},
    ]  # fmt: skip
    for changes in inside:
        assert pack_key(make_trial(**changes)) == key, changes
    outside = [
        {"quantization": "nf4"}, {"batch_size": 2}, {"gradient_accumulation": 2},
        {"training": {"optimizer": "paged_adamw_8bit"}}, {"training": {"gradient_checkpointing": True}},
        {"training": {"eval_batch_size": 2}},
    ]  # fmt: skip
    keys = [pack_key(make_trial(**changes)) for changes in outside]
    assert len({key, *keys}) == len(outside) + 1
    other = make_trial().model_copy(update={"model": ModelConfig(name="other")})
    assert pack_key(other) != key
    assert base_key(other.model, "causal_lm", "bf16") != base_key(other.model, "causal_lm", "nf4")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"modules": "all-linear", "quantization": "nf4", "dropout": 0.1, "training": {"batch_size": 2}}, ""),
        ({"bias": "lora_only"}, "bias lora_only"),
        ({"modules": "q_proj+lm_head"}, "an adapter on lm_head"),
        ({"training": {"optimizer": "paged_adamw_8bit"}}, "optimizer paged_adamw_8bit"),
        ({"training": {"gradient_checkpointing": True}}, ""),
    ],
)
def test_each_reason_is_said(make_trial: MakeTrial, facts: ModelFacts, changes: dict, reason: str) -> None:
    """An ordinary configuration is packed; what the engine does not cover is named."""
    found = why_not_packed(make_trial(**changes), facts, predicted=True)
    assert (reason in found) if reason else not found


def test_reasons_that_lie_outside_the_configuration(make_trial: MakeTrial, facts: ModelFacts) -> None:
    """The user's own code, other tasks, dropout of the base and memory that nobody knows go to stock PEFT."""
    trial = make_trial()

    def reason(*, predicted: bool = True, of: ModelFacts = facts, **changes: object) -> str:
        return why_not_packed(trial.model_copy(update=changes), of, predicted=predicted)

    recomputed = trial.training.model_copy(update={"gradient_checkpointing": True})
    assert "your own" in reason(task="mine:TASK")
    assert "not packed yet" in reason(task="seq_2_seq_lm")
    assert "score" in reason(functions={"score": "mine:score"})
    assert "predicted" in reason(predicted=False)
    assert "LayerNorm" in reason(of=replace(facts, odd_head=("LayerNorm",)))
    assert "dropout" in reason(of=replace(facts, dropout=True), training=recomputed)


def test_what_a_config_says_of_dropout_and_heads(tmp_path: Path) -> None:
    """Llama drops nothing by itself, BERT does; a classifier of linear layers is no reason."""

    def of(family: str, task: str) -> ModelFacts:
        build(family, tmp_path / family)
        return model_facts(load_config(ModelConfig(name=str(tmp_path / family))), task_named(task))

    llama, bert = of("llama", "causal_lm"), of("bert", "seq_cls")
    assert (llama.dropout, llama.odd_head) == (False, ())
    assert (bert.dropout, bert.odd_head) == (True, ())
