"""Which engine trains a configuration: what a pack has in common, and why one is left to stock PEFT. Pure, no torch.

`packed`: many trials in one pass over one frozen base. `process`: stock PEFT, one trial at a time; the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorafront.spaces.modules import is_head
from lorafront.trainables.task import TASKS

if TYPE_CHECKING:
    from lorafront.trainables.config import ModelConfig, TrialConfig
    from lorafront.trainables.model_facts import ModelFacts

PACKED, PROCESS = "packed", "process"
# Tasks of ours whose loss the packed engine does not keep apart by trial yet.
UNPACKED_TASKS = frozenset({"seq_2_seq_lm"})


def base_key(model: ModelConfig, task: str, quantization: str, labels: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What trials must have in common to share frozen weights; `task` is the task's own name."""
    return (task, model.name, model.revision or "", model.attention, quantization, *labels)


def pack_key(config: TrialConfig) -> tuple[str, ...]:
    """What trials must have in common to train in one pass: the batches, how a step is taken, and the base."""
    lora, training = config.lora, config.training
    shared = (
        str(config.tokens), lora.batch_size, lora.gradient_accumulation, training.eval_batch_size or lora.batch_size,
        training.optimizer, training.gradient_checkpointing,
    )  # fmt: skip
    return (*map(str, shared), *base_key(config.model, config.task, lora.quantization, config.labels))


def why_not_packed(config: TrialConfig, facts: ModelFacts, *, predicted: bool) -> str:
    """Why a configuration cannot be packed, in words; empty where it can.

    Args:
        config: of the trial, as it is executed.
        facts: of its model.
        predicted: its peak memory is known before it runs; nothing could tell the peak of one trial of a pack.
    """
    lora, training = config.lora, config.training
    heads = [name for name in config.targets if is_head(name)]
    reasons = {
        "full fine-tuning trains the base": lora.method == "full",
        f"task {config.task} is your own: its loss cannot be told apart by trial": config.task not in TASKS,
        f"task {config.task} is not packed yet": config.task in UNPACKED_TASKS,
        f"functions of your own need a stock PEFT model: {', '.join(config.functions)}": bool(config.functions),
        f"bias {lora.bias} trains parameters of the base": lora.bias != "none",
        f"optimizer {training.optimizer} is not packed": training.optimizer != "adamw",
        f"an adapter on {', '.join(heads)}": bool(heads),
        "gradient checkpointing of a base with dropout of its own": training.gradient_checkpointing and facts.dropout,
        "attention flash_attention_2 of a base with dropout of its own": (
            config.model.attention == "flash_attention_2" and facts.dropout
        ),
        f"its new head has parameters in {', '.join(facts.odd_head)}": bool(facts.odd_head),
        f"rows of a batch do not stay apart: {facts.mixed}": bool(facts.mixed),
        "its peak memory cannot be predicted": not predicted,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
