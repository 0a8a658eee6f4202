"""How a configuration is executed at a fixed effective batch: cut into passes, with or without recomputing activations.

None of it changes what is learnt more than rounding does, and all of it decides how much memory a step takes. So it is
not searched but solved: of the ways that fit, the quickest one (search/preflight.py asks the memory model which do).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from lorafront.spaces.lora import Count, LoraConfiguration
from lorafront.trainables.config import Optimizer, TrainingConfig

BUSY = 4096  # tokens of a pass that keep a GPU busy; fewer take as long. Not measured here.
# Over a frozen base forward and backward are two products per weight; recomputing adds one more.
RECOMPUTED = 1.5


class Execution(BaseModel):
    """One way; its batch and its passes replace those of the configuration, the rest those of `training`."""

    model_config = ConfigDict(frozen=True)

    batch_size: Count
    gradient_accumulation: Count
    gradient_checkpointing: bool
    optimizer: Optimizer

    @classmethod
    def given(cls, lora: LoraConfiguration, training: TrainingConfig) -> Execution:
        """As the file says."""
        return cls(
            batch_size=lora.batch_size,
            gradient_accumulation=lora.gradient_accumulation,
            gradient_checkpointing=training.gradient_checkpointing,
            optimizer=training.optimizer,
        )

    @property
    def label(self) -> str:
        """Such as `2 x 4 rows, checkpointing`."""
        rows = f"{self.gradient_accumulation} x {self.batch_size} rows"
        also = ["checkpointing"] if self.gradient_checkpointing else []
        return ", ".join([rows, *also, *(["paged optimizer"] if self.optimizer != "adamw" else [])])

    def cost(self, tokens: int) -> float:
        """Time of an optimizer step, in units that compare the ways of one configuration.

        Args:
            tokens: of the longest row.
        """
        once = max(BUSY, self.batch_size * tokens) * self.gradient_accumulation
        return once * (RECOMPUTED if self.gradient_checkpointing else 1)

    def applied(self, lora: LoraConfiguration, training: TrainingConfig) -> tuple[LoraConfiguration, TrainingConfig]:
        """What the trainer is told."""
        own = self.model_dump()
        cut = {name: own[name] for name in ("batch_size", "gradient_accumulation")}
        rest = {name: own[name] for name in ("gradient_checkpointing", "optimizer")}
        return lora.model_copy(update=cut), training.model_copy(update=rest)


def executions(lora: LoraConfiguration, training: TrainingConfig, tokens: int) -> list[Execution]:
    """All ways of one configuration, the quickest first; of equally quick ones that with less memory.

    The optimizer is paged only after all that keep it.

    Args:
        lora: its batch times its passes is the effective batch.
        training: names the optimizer.
        tokens: of the longest row.
    """
    effective = lora.batch_size * lora.gradient_accumulation
    optimizers: list[Literal["adamw", "paged_adamw_8bit"]] = ["adamw", "paged_adamw_8bit"]
    found = [
        Execution(
            batch_size=batch,
            gradient_accumulation=effective // batch,
            gradient_checkpointing=recompute,
            optimizer=optimizer,
        )
        for optimizer in optimizers[optimizers.index(training.optimizer) :]
        for recompute in (False, True)
        for batch in range(1, effective + 1)
        if effective % batch == 0
    ]
    return sorted(found, key=lambda way: (optimizers.index(way.optimizer), way.cost(tokens), way.batch_size))
