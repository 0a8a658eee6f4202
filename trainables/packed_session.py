"""One trial in a slot of a packed engine: what stock PEFT's session is for a trial alone.

It counts, reports, saves and loads; the engine trains and evaluates it together with others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import get_scheduler

from lorafront.trainables.data import row_order
from lorafront.trainables.frozen_base import lora_config
from lorafront.trainables.models import dtype_name
from lorafront.trainables.packed_adamw import FIRST_SCALE
from lorafront.trainables.packed_slot import MEAN, SQUARE, VALUES, Numbers, Slot
from lorafront.trainables.peft_session import ADAPTER, MASTER, OPTIMIZER, SCHEDULES, STATE, speed, write_position
from lorafront.trainables.session import Measurements, never

if TYPE_CHECKING:
    from lorafront.trainables.config import TrialConfig
    from lorafront.trainables.packed_engine import PackedEngine

ADAPTER_FILE = "adapter_model.safetensors"


class PackedSession:
    """One trial in a slot of a packed engine. Implements `Session`.

    Attributes:
        slot: its adapter and what its optimizer knows.
        rates: learning rate of each step.
        quality: what an evaluation of several sessions measured for this one; taken by `evaluate`.
    """

    def __init__(self, engine: PackedEngine, config: TrialConfig) -> None:
        """A fresh adapter; nothing is trained yet."""
        start = time.perf_counter()
        self.engine: Final = engine
        self.config: Final = config
        first_scale = FIRST_SCALE if engine.base.dtype == torch.float16 else 1.0
        self.slot: Final = Slot(config, engine.packed, engine.head, first_scale)
        self.rates: Final = _rates(config, -(-config.rows // config.rows_per_step))
        self.step = 0
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self.quality: dict[str, float] | None = None
        self._losses: list[torch.Tensor] = []
        self._grad_norm = torch.zeros(())
        self._rows: Iterator[int] | None = None
        self.references: Final = engine.references()
        self.setup_seconds: Final = time.perf_counter() - start

    @property
    def rows_seen(self) -> int:
        """Training rows so far."""
        return self.step * self.config.rows_per_step

    @property
    def share(self) -> float:
        """Of the evaluation rows that are measured at its rung, as in `PeftSession.evaluate`."""
        rung = max((rows for rows in self.config.rungs if rows <= self.rows_seen), default=self.config.rungs[0])
        return rung / self.config.rows

    def train(self, rows: int, interrupted: Callable[[], bool] = never) -> None:
        """Take steps alone until so many rows have been seen; nothing where they have, as in a pack."""
        if self.rows_seen < rows:
            self.engine.train({self: rows}, interrupted)

    def next_rows(self) -> list[int]:
        """Numbers of the rows of its next pass."""
        if self._rows is None:
            self._rows = islice(row_order(len(self.engine.data.train), self.config.seed), self.rows_seen, None)
        return list(islice(self._rows, self.config.lora.batch_size))

    def rewind(self) -> None:
        """The rows of a step that broke off come again."""
        self._rows = None

    def stepped(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """A step was taken; read when somebody asks, because each look waits for the device."""
        self._losses.append(loss)
        self._grad_norm = norm
        self.step += 1

    def evaluate(self) -> dict[str, Any]:
        """As `PeftSession.evaluate`, but for memory: what a trial needs alone cannot be measured in a pack."""
        if self.quality is None:
            self.engine.evaluate([self])
        quality, self.quality = self.quality or {}, None
        values = self.slot.numbers[VALUES]
        trained = sum(value.numel() for value in values.values())
        of_head = sum(torch.Size(shape).numel() for _, shape in self.engine.head.parameters())
        measured = Measurements(
            trainable_params=trained,
            trainable_percent=100 * trained / (self.engine.total_parameters + trained),
            adapter_mb=(4 * (trained - of_head) + self.engine.base.dtype.itemsize * of_head) / 1e6,
            train_seconds=self.train_seconds,
            setup_seconds=self.setup_seconds,
            eval_seconds=self.eval_seconds,
            compute_dtype=dtype_name(self.engine.base.dtype),
        )
        if self._losses:
            measured["train_loss"] = float(torch.stack(self._losses).mean())
            measured["grad_norm"] = float(self._grad_norm)
            self._losses = []
        measured.update(speed(self.engine.data.train, self.config.seed, self.rows_seen, self.train_seconds))
        return {**measured, **quality, **{f"base_{name}": value for name, value in self.references.items()}}

    def save(self, folder: Path) -> None:
        """Write what `PeftSession.save` writes; either goes on from it."""
        self.engine.keep_counters()
        engine, numbers, counters = self.engine, self.slot.numbers, self.slot.counters
        dtype = engine.base.dtype
        adapter = lora_config(
            self.config.lora, self.config.targets, engine.task.peft_type, self.config.model, engine.base.new_modules
        )
        adapter.fan_in_fan_out = engine.packed.fan_in_fan_out
        adapter.inference_mode = True
        adapter.save_pretrained(str(folder / ADAPTER))
        of_head = [name for name in self.slot.names if ".lora_" not in name]
        stored = {name: value.to(dtype) if name in of_head else value for name, value in numbers[VALUES].items()}
        save_file(_on_cpu(stored), folder / ADAPTER / ADAPTER_FILE, metadata={"format": "pt"})
        tensors = {}
        for place, name in enumerate(self.slot.names):
            if self.step:
                tensors[f"{place}/step"] = counters.steps
                tensors |= {f"{place}/{kind}": numbers[kind][name] for kind in (MEAN, SQUARE)}
            if name in of_head and dtype != torch.float32:
                tensors[f"{MASTER}/{place}"] = numbers[VALUES][name]
        save_file(_on_cpu(tensors), folder / OPTIMIZER)
        position = {
            "step": self.step,
            "train_seconds": self.train_seconds,
            "losses": torch.stack(self._losses).tolist() if self._losses else [],
            "schedule": {"last_epoch": self.step, "_step_count": self.step + 1, "_last_lr": [self.rates[self.step]]},
            "scaler": counters.scaler() if dtype == torch.float16 else {},
            "optimizer": {},
        }
        write_position(folder, position, engine.base, engine.data)

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, or `PeftSession.save`."""
        self.engine.unstack()
        position = json.loads((folder / STATE).read_text(encoding="utf-8"))
        stored, state = load_file(folder / ADAPTER / ADAPTER_FILE), load_file(folder / OPTIMIZER)
        numbers, counters = self.slot.numbers, self.slot.counters
        for place, name in enumerate(self.slot.names):
            numbers[VALUES][name].copy_(state.get(f"{MASTER}/{place}", stored[name]))
            for kind in (MEAN, SQUARE):
                if f"{place}/{kind}" in state:
                    numbers[kind][name].copy_(state[f"{place}/{kind}"])
        if "0/step" in state:
            counters.steps.fill_(float(state["0/step"]))
        if position["scaler"]:
            counters.scale.fill_(position["scaler"]["scale"])
            counters.growing.fill_(position["scaler"]["_growth_tracker"])
        self.step = position["step"]
        self.train_seconds = position["train_seconds"]
        self._losses = list(torch.tensor(position["losses"], dtype=torch.float32, device=self.engine.device))
        self._rows = None

    def close(self) -> None:
        """Give back the slot."""
        self.engine.leave(self)


def _rates(config: TrialConfig, steps: int) -> list[float]:
    """Learning rate of each step, and of the one that would follow, by transformers' own schedules."""
    lora = config.lora
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lora.learning_rate)
    schedule = get_scheduler(
        SCHEDULES[lora.scheduler], dummy, num_warmup_steps=round(lora.warmup * steps), num_training_steps=steps
    )
    return [lora.learning_rate * schedule.lr_lambdas[0](step) for step in range(steps + 1)]


def _on_cpu(numbers: Numbers) -> Numbers:
    """Copies in a layout of their own; the views of a stack overlap."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in numbers.items()}
