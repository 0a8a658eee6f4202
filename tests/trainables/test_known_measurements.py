"""What is known before a trial runs is what a session measures, on every family of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import FAMILIES, build, small_config
from support import lora

from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.modules import resolve
from lorafront.trainables.config import ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.frozen_base import FrozenBase
from lorafront.trainables.known_measurements import known_measurements
from lorafront.trainables.model_facts import model_facts
from lorafront.trainables.task import task_named

LABELS = ("no", "perhaps", "yes")


def trained(
    base: FrozenBase, model: ModelConfig, configuration: LoraConfiguration, targets: tuple[str, ...]
) -> dict[str, float]:
    """What PEFT trains, counted on the model itself."""
    trial = TrialConfig(
        task=base.task.name, model=model, training=TrainingConfig(rows=8), lora=configuration,
        targets=targets, rungs=(8,), seed=3, tokens=Path("none"), labels=LABELS if base.task.new_head else (),
    )  # fmt: skip
    adapted = base.attach(trial)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    measured = {
        "trainable_params": adapted.get_nb_trainable_parameters()[0],
        "adapter_mb": sum(p.numel() * p.element_size() for p in parameters) / 1e6,
    }
    base.detach(adapted)
    return measured


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_known_before_a_trial_runs(name: str, tmp_path: Path) -> None:
    """Parameters and megabytes equal those of the adapter that PEFT makes; under a new head they are lower bounds."""
    task = task_named(FAMILIES[name][0])
    labels = LABELS if task.new_head else ()
    model = build(name, tmp_path)
    facts = model_facts(small_config(name), task, labels or ("0", "1"))
    for quantization in ("fp32", "bf16"):
        base = FrozenBase(model, task, quantization, labels)
        for modules in ("attention", "all-linear"):
            found = resolve(modules, list(facts.linears))
            for rank, bias in ((1, "none"), (4, "lora_only"), (3, "all")):
                configuration = lora(rank=rank, bias=bias, modules=modules, quantization=quantization)
                known = known_measurements(
                    configuration, facts, found.names, torch.device("cpu"), new_head=task.new_head
                )
                measured = trained(base, model, configuration, found.targets)
                if task.new_head:
                    assert all(known[key] < measured[key] for key in known)
                else:
                    assert known == pytest.approx(measured, rel=1e-12), (quantization, modules, bias)
