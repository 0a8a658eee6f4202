"""Full fine-tuning: every weight trains, the base comes back, and its memory is predicted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import PROJECT, MakeTrial, lora

from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.sizes import GIB
from lorafront.trainables.config import ModelConfig, TrialConfig
from lorafront.trainables.data import largest_batch, load
from lorafront.trainables.engines import why_not_packed
from lorafront.trainables.frozen_base import BaseCache, FrozenBase
from lorafront.trainables.known_measurements import known_measurements
from lorafront.trainables.memory_model import MemoryModel, Shapes
from lorafront.trainables.model_facts import ModelFacts
from lorafront.trainables.models import device, load_config
from lorafront.trainables.peft_session import open_session
from lorafront.trainables.task import task_named


def weights(base: FrozenBase) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in base.model.parameters()]


def base_of(trial: TrialConfig, bases: BaseCache) -> FrozenBase:
    return bases.get(trial.model, task_named(trial.task), trial.lora.quantization, trial.labels)


@pytest.mark.parametrize("quantization", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_weight_trains_and_the_base_comes_back(
    make_trial: MakeTrial, bases: BaseCache, facts: ModelFacts, quantization: str, *, checkpointing: bool
) -> None:
    """It learns the text, and whoever borrows the base next finds it as it was, bit by bit."""
    trial = make_trial(
        method="full", quantization=quantization, learning_rate=1e-3,
        training={"gradient_checkpointing": checkpointing},
    )  # fmt: skip
    base = base_of(trial, bases)
    before = weights(base)
    session = open_session(trial, bases)
    session.train(32)
    measured = session.evaluate()
    assert all(not torch.equal(one, two) for one, two in zip(before, session.masters.parameters, strict=True))
    session.close()
    assert all(torch.equal(one, two) for one, two in zip(before, weights(base), strict=True))
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert measured["perplexity"] < measured["base_perplexity"] / 2
    assert measured["trainable_percent"] == 100
    known = known_measurements(trial.lora, facts, (), device())
    assert {name: measured[name] for name in known} == known


def test_an_adapter_after_it_trains_as_if_it_had_never_been(make_trial: MakeTrial) -> None:
    """On one base, one after the other."""

    def losses(bases: BaseCache, trial: TrialConfig) -> float:
        session = open_session(trial, bases)
        session.train(32)
        found = float(session.evaluate()["eval_loss"])
        session.close()
        return found

    alone = losses(BaseCache(), make_trial())
    bases = BaseCache()
    losses(bases, make_trial(method="full", learning_rate=1e-3))
    assert losses(bases, make_trial()) == alone


@pytest.mark.parametrize("quantization", ["fp32", "bf16"])
def test_an_interrupted_one_has_the_losses_of_an_uninterrupted_one(
    make_trial: MakeTrial, bases: BaseCache, tmp_path: Path, quantization: str
) -> None:
    """All weights, their float32 copies and the optimizer are in the checkpoint."""
    trial = make_trial(method="full", quantization=quantization, learning_rate=1e-3)
    whole = open_session(trial, bases)
    whole.train(32)
    expected = whole.evaluate()["eval_loss"]
    whole.close()
    first = open_session(trial, bases)
    first.train(16)
    first.save(tmp_path)
    first.close()
    second = open_session(trial, bases)
    second.load(tmp_path)
    second.train(32)
    assert second.evaluate()["eval_loss"] == expected
    (tmp_path / "end").mkdir()
    second.save(tmp_path / "end")
    second.close()
    assert (tmp_path / "model.safetensors").is_file()
    assert not list((tmp_path / "end").glob("*.safetensors"))  # nothing goes on from there


@pytest.mark.parametrize("quantization", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_memory_is_predicted_to_the_byte(
    make_trial: MakeTrial, bases: BaseCache, tiny_model: ModelConfig, quantization: str, *, checkpointing: bool
) -> None:
    """Weights, their float32 copies, gradients and optimizer of the whole model."""
    trial = make_trial(
        method="full", quantization=quantization, training={"gradient_checkpointing": checkpointing}
    )  # fmt: skip
    session = open_session(trial, bases)
    found = session.evaluate()["peak_vram_gb"]
    session.close()
    task, rows = task_named(trial.task), load(trial.tokens)
    largest = task.collate(rows.train, largest_batch(rows.train, 0, 32, trial.lora.batch_size), rows.pad_id)
    predicted = MemoryModel(load_config(tiny_model), task).predict(trial.lora, trial.training, Shapes.of(largest, task))
    assert predicted.total / GIB == found


def test_a_new_head_starts_the_same_whether_the_rest_is_adapted_or_trained(
    make_trial: MakeTrial, bases: BaseCache
) -> None:
    """So that a difference is not that of two heads; and the head, too, is given back."""
    heads = []
    for changes in ({"method": "full"}, {}):
        trial = make_trial(quantization="fp32", **changes)
        model = ModelConfig(name=str(PROJECT / "examples" / "tiny-bert"))
        trial = trial.model_copy(
            update={"task": "seq_cls", "model": model, "labels": ("a", "b"), "targets": ("query", "value")}
        )
        base = base_of(trial, bases)
        before = weights(base)
        attached = base.train_whole(trial) if trial.lora.method == "full" else base.attach(trial)
        heads.append(
            {
                name.rsplit("classifier", 1)[1].replace(".modules_to_save.default", ""): p.detach().clone()
                for name, p in attached.named_parameters()
                if "classifier" in name and p.requires_grad
            }
        )
        base.detach(attached)
        assert all(torch.equal(one, two) for one, two in zip(before, weights(base), strict=True))
    assert heads[0].keys() == heads[1].keys()
    assert heads[0]
    assert all(torch.equal(heads[0][name].float(), heads[1][name].float()) for name in heads[0])


def test_it_is_a_configuration_without_an_adapter(make_trial: MakeTrial, facts: ModelFacts) -> None:
    """What speaks of adapters is neither said nor compared, and quantized weights are replaced by 16 bits."""
    one, other = lora(method="full", rank=64, quantization="nf4"), lora(method="full", rank=2, dropout=0.3)
    assert one == other
    assert one.label == "full fine-tuning bf16"
    assert not {"rank", "alpha", "modules", "dropout", "bias"} & one.model_dump().keys()
    assert LoraConfiguration.model_validate_json(one.model_dump_json()) == one
    assert "method" not in lora().model_dump()
    assert "trains the base" in why_not_packed(make_trial(method="full"), facts, predicted=True)
