"""Many LoRA trials in one pass over one frozen base: what stock PEFT would compute for each, in one go for all.

`PackedEngine` holds the base; each trial is a `PackedSession` in a slot. Guarantees: a trial's numbers depend on its
own configuration and seed, not on its slot or its neighbours; what it saves is what `PeftSession` saves. Trades away
what cannot share a pass (`NotPackable`, trainables/engines.py).

Shape legend: k slots, b rows of a slot in a pass, t tokens of the longest row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import get_scheduler

from lorafront.trainables import heartbeat
from lorafront.trainables.data import TokenData, TokenRows, row_order
from lorafront.trainables.data import load as load_tokens
from lorafront.trainables.frozen_base import SHARE_OF_MEMORY, head_spread, lora_config
from lorafront.trainables.keyed_random import word
from lorafront.trainables.models import dtype_name
from lorafront.trainables.packed_adamw import FIRST_SCALE, Rates, update
from lorafront.trainables.packed_base import PackedBase, evaluating, probe
from lorafront.trainables.packed_dropout import Draws, DropoutCalls, KeyedDropout
from lorafront.trainables.packed_head import PackedHead
from lorafront.trainables.packed_lora import GroupOfLinears, Pass, bare
from lorafront.trainables.packed_slot import MEAN, SQUARE, VALUES, Slot, Stack
from lorafront.trainables.packed_task import Batch, packed_task
from lorafront.trainables.peft_session import ADAPTER, BASE, MASTER, OPTIMIZER, SCHEDULES, STATE
from lorafront.trainables.session import Measurements, never
from lorafront.trainables.task import task_named

if TYPE_CHECKING:
    from lorafront.trainables.config import TrialConfig
    from lorafront.trainables.frozen_base import BaseCache, FrozenBase
    from lorafront.trainables.packed_base import Group

ADAPTER_FILE = "adapter_model.safetensors"


class PackedEngine:
    """One frozen base and the trials that train on it together. Implements `Engine`.

    All of them have the same `engines.pack_key`: base, rows of a pass, passes of a step, data.
    """

    def __init__(self, config: TrialConfig, bases: BaseCache, *, keep_dense: bool | None = None) -> None:
        """Take the base and look at its model; nothing is attached to it yet.

        Args:
            config: of any trial that will be in the pack.
            bases: that holds or loads the base.
            keep_dense: keep quantized weights also in the dtype of the products, computed once; None where they are
                small.

        Raises:
            NotPackable: the model mixes rows, or has a head that is not of linear modules.
        """
        torch.set_num_threads(config.threads)
        self.task: Final = task_named(config.task, config.code)
        self.base: Final[FrozenBase] = bases.get(config.model, self.task, config.lora.quantization, config.labels)
        self.data: Final[TokenData] = load_tokens(config.tokens)
        self.model: Final = self.base.model
        self.model.config.pad_token_id = self.data.pad_id  # a classifier on a decoder looks for the end of a row by it
        self.device: Final = self.base.device
        self.config: Final = config
        self.longest: Final = max(
            int(rows.lengths.max()) for rows in (self.data.train, self.data.evaluation, *self.data.also.values())
        )
        heads = tuple(self.base.new_modules)
        keep = self._small() if keep_dense is None else keep_dense
        self.packed: Final = PackedBase(self.model, self.base.dtype, heads, keep=keep)
        self.head: Final = PackedHead(self.model, heads, self.base.dtype)
        self.rows: Final = packed_task(config.task, self.model)
        self.total_parameters: Final = PeftModel.get_nb_trainable_parameters(self.model)[1]
        self._sites = torch.tensor([word(name) for name in self.packed.linears], dtype=torch.int32).to(self.device)
        self._own_sites = self._base_sites()
        self._anchor = torch.zeros((), device=self.device, requires_grad=True)
        self._now = bare()
        self._stack: Stack | None = None
        self._sessions: list[PackedSession] = []
        self._open = False

    def open(self, config: TrialConfig) -> PackedSession:
        """A fresh session in a slot of its own."""
        session = PackedSession(self, config)
        self._sessions.append(session)
        return session

    def train(self, goals: Mapping[PackedSession, int], interrupted: Callable[[], bool] = never) -> None:
        """Take optimizer steps of all these sessions together, until one has seen its rows or somebody interrupts.

        Args:
            goals: training rows since the beginning of each trial.
            interrupted: asked before each step.
        """
        sessions = self._stacked(list(goals))
        self._attach()
        self.model.train()
        start = time.perf_counter()
        while all(one.rows_seen < rows for one, rows in goals.items()) and not interrupted():
            self._step(sessions)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        share = (time.perf_counter() - start) / max(1, len(sessions))
        for session in sessions:
            session.train_seconds += share

    def evaluate(self, sessions: Sequence[PackedSession]) -> None:
        """Measure in shared passes; `evaluate` of each then gives its own."""
        alike: dict[float, list[PackedSession]] = {}
        for session in sessions:
            alike.setdefault(session.share, []).append(session)
        for share, members in alike.items():
            start = time.perf_counter()
            found = self._quality(members, share)
            seconds = (time.perf_counter() - start) / len(members)
            for session, quality in zip(members, found, strict=True):
                session.quality, session.eval_seconds = quality, seconds

    def leave(self, session: PackedSession) -> None:
        """A trial gives back its slot."""
        self._sessions = [one for one in self._sessions if one is not session]
        if self._stack is not None and session.slot in self._stack.slots:
            self.keep_counters()
            self._stack = None  # the slots that stay keep their numbers, and are stacked again

    def keep_counters(self) -> None:
        """Give the slots what the optimizer counted."""
        if self._stack is not None:
            self._stack.keep_counters()

    def close(self) -> None:
        """Give the base back as it was."""
        self._stack, self._sessions, self._now, self._open = None, [], bare(), False
        self.packed.close()
        self.head.close()
        if self.model.is_gradient_checkpointing:
            self.model.gradient_checkpointing_disable()

    def references(self) -> dict[str, float]:
        """Evaluation before the first step: B is zero, so it is the base's own, once per base and data."""
        if self.task.new_head:
            return {}  # an untrained head says nothing
        known = self.base.references
        if self.config.tokens not in known:
            known[self.config.tokens] = self._quality([], 1.0)[0]
        return known[self.config.tokens]

    def _small(self) -> bool:
        """Whether the quantized weights in the products' dtype are a small part of the device's memory."""
        on_gpu = self.device.type == "cuda"
        there = torch.cuda.get_device_properties(self.device).total_memory if on_gpu else psutil.virtual_memory().total
        return 4 * self.base.bytes < there * SHARE_OF_MEMORY  # of 4 bits, 16 take four times as much

    def _base_sites(self) -> torch.Tensor:
        """int32[s]: a number for each call of a pass in which the base itself drops something."""
        was = self.model.training
        self.model.train()
        with torch.no_grad(), DropoutCalls() as calls, torch.random.fork_rng([]):
            probe(self.model)
        self.model.train(was)
        names = [word(f"dropout {index}") for index in range(calls.count)]
        return torch.tensor(names, dtype=torch.int32).to(self.device)

    def _stacked(self, sessions: list[PackedSession]) -> list[PackedSession]:
        """These sessions and no others, in the order of their slots; stacked anew where that changes."""
        wanted = {id(one.slot) for one in sessions}
        if self._stack is None or wanted != {id(slot) for slot in self._stack.slots}:
            self.keep_counters()
            self._stack = Stack([one.slot for one in sessions], self.packed, self.head)
        by_slot = {id(one.slot): one for one in sessions}
        return [by_slot[id(slot)] for slot in self._stack.slots]

    def _attach(self) -> None:
        """From now on the model computes with the adapters of `self._now`."""
        if self._open:
            return
        self.packed.open(self._outputs)
        self.head.open(lambda: self._now, self._anchor)
        if self.config.training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._open = True

    def _outputs(self, group: Group, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: tuple[torch.Tensor, ...] = GroupOfLinears.apply(x, self._anchor, group, self._now)  # type: ignore[no-untyped-call]
        return found

    def _step(self, sessions: list[PackedSession]) -> None:
        """One optimizer step of every slot; the loss of each is the mean over the targets of its micro-batches."""
        stack = self._stack
        if stack is None:
            raise RuntimeError("nothing is stacked")
        passes = self.config.lora.gradient_accumulation
        batches = [self._batch([one.next_rows() for one in sessions]) for _ in range(passes)]
        slots = len(sessions)
        targets_k = torch.stack([self.rows.targets(batch).view(slots, -1).sum(1) for batch in batches]).sum(0).clamp(1)
        weights_k = (1 / targets_k).to(self.device) * stack.state.scale
        losses_k = torch.zeros(slots, device=self.device)
        values = [bucket.as_type(self.base.dtype) for bucket in stack.buckets]
        sixteen_bit = self.base.dtype != torch.float32
        for index, batch in enumerate(batches):
            on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
            moments = torch.tensor([one.step * passes + index for one in sessions], dtype=torch.int32).to(self.device)
            stack.draw(moments, self._sites)
            rows, tokens = batch["input_ids"].shape
            places = self._places(rows // slots, tokens)
            self._now = Pass(stack.buckets, values, places, first=index == 0)
            with (
                self._base_dropout(stack, moments),
                torch.autocast(self.device.type, dtype=self.base.dtype, enabled=sixteen_bit),
            ):
                losses_r = self.rows.losses(on_device, weights_k.repeat_interleave(rows // slots))
            losses_r.sum().backward()  # type: ignore[no-untyped-call]
            losses_k += losses_r.detach().view(slots, -1).sum(1)
        norm_k = update(stack.buckets, stack.state, self._rates(sessions), scaled=self.base.dtype == torch.float16)
        losses_k = torch.where(stack.state.alive, losses_k / stack.state.scale, torch.nan)
        for place, session in enumerate(sessions):
            session.stepped(losses_k[place], norm_k[place])
        heartbeat.beat()

    def _rates(self, sessions: Sequence[PackedSession]) -> Rates:
        asked = [
            [one.rates[one.step], one.config.lora.weight_decay, one.config.training.max_grad_norm] for one in sessions
        ]
        return Rates(*torch.tensor(asked, dtype=torch.float32).to(self.device, non_blocking=True).unbind(1))

    def _places(self, rows: int, tokens: int) -> torch.Tensor:
        """int32[b t]: number of each token of a slot; the same whatever the batch is padded to."""
        counted = torch.arange(rows, dtype=torch.int32)[:, None] * self.longest + torch.arange(
            tokens, dtype=torch.int32
        )
        return counted.flatten().to(self.device)

    def _base_dropout(self, stack: Stack, moments: torch.Tensor) -> Any:
        if not len(self._own_sites):
            return nullcontext()
        return KeyedDropout(Draws(stack.keys(moments, self._own_sites), self.longest))

    def _batch(self, rows_k: list[list[int]]) -> Batch:
        """Rows of all slots, slot by slot; filled up to the longest of them."""
        same = all(rows == rows_k[0] for rows in rows_k)
        chosen = rows_k[0] if same else [row for rows in rows_k for row in rows]
        batch = self.task.collate(self.data.train, chosen, self.data.pad_id)
        if same and len(rows_k) > 1:
            batch = {name: tensor.repeat(len(rows_k), *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}
        return batch

    def _quality(self, sessions: list[PackedSession], share: float) -> list[dict[str, float]]:
        """The task's metrics of each session on the same part of the evaluation split and of the second sets.

        Without sessions those of the bare base.
        """
        ordered, now = sessions, bare()
        if sessions:
            if self._stack is None or not {id(one.slot) for one in sessions} <= {id(s) for s in self._stack.slots}:
                self._stacked(self._sessions)
            slots, buckets = self._stack.only([one.slot for one in sessions])  # type: ignore[union-attr]
            by_slot = {id(one.slot): one for one in sessions}
            ordered = [by_slot[id(slot)] for slot in slots]
            now = Pass(buckets, [bucket.values for bucket in buckets])  # float32, as without autocast
        found = [dict[str, float]() for _ in range(now.slots)]
        self._attach()
        with evaluating(self.model):
            self._now = now
            for name, rows in {"": self.data.evaluation, **self.data.also}.items():
                for metrics, sums in zip(found, self._tally(rows.part(share), now.slots), strict=True):
                    measured = self.task.metrics(sums)
                    metrics.update({f"eval_{name}_loss": measured["eval_loss"]} if name else measured)
        self._now = bare()
        place = {id(session): index for index, session in enumerate(ordered)}
        return [found[place[id(session)]] for session in sessions] or found

    def _tally(self, rows: TokenRows, slots: int) -> torch.Tensor:
        """float64[k, n]: the task's sums over all rows, longest first as in `evaluate.tally`."""
        size = self.config.training.eval_batch_size or self.config.lora.batch_size
        lengths = rows.lengths
        order = sorted(range(len(rows)), key=lambda i: -int(lengths[i]))
        sums = []
        for start in range(0, len(order), size):
            batch = self.task.collate(rows, order[start : start + size], self.data.pad_id)
            repeated = {name: tensor.repeat(slots, *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}
            tallied = self.rows.tally({name: tensor.to(self.device) for name, tensor in repeated.items()})
            sums.append(tallied.view(slots, -1, tallied.shape[1]).sum(1).cpu())
            heartbeat.beat()
        return torch.stack(sums).sum(0)


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
        self.slot: Final = Slot(config, engine.packed, engine.head, first_scale, head_spread(engine.model.config))
        self.total_steps: Final = -(-config.rows // config.rows_per_step)
        self.rates: Final = _rates(config, self.total_steps)
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
        if self.train_seconds > 0:
            rows = self.engine.data.train
            seen = list(islice(row_order(len(rows), self.config.seed), self.rows_seen))
            measured["tokens_per_second"] = int(rows.lengths[seen].sum()) / self.train_seconds
            measured["seconds_per_epoch"] = self.train_seconds * len(rows) / self.rows_seen
        return {**measured, **quality, **{f"base_{name}": value for name, value in self.references.items()}}

    def save(self, folder: Path) -> None:
        """Write what `PeftSession.save` writes."""
        self.engine.keep_counters()
        numbers, lora = self.slot.numbers, self.config.lora
        adapter = lora_config(
            lora, self.config.targets, self.engine.task.peft_type, self.config.model, self.engine.base.new_modules
        )
        adapter.fan_in_fan_out = any(one.kind == "Conv1D" for one in self.engine.packed.linears.values())
        adapter.inference_mode = True
        adapter.save_pretrained(str(folder / ADAPTER))
        of_head = {f"{name}" for name in numbers[VALUES] if ".lora_" not in name}
        dtype = self.engine.base.dtype
        stored = {
            name: value.detach().to(dtype if name in of_head else torch.float32).cpu().contiguous().clone()
            for name, value in numbers[VALUES].items()
        }
        save_file(stored, folder / ADAPTER / ADAPTER_FILE, metadata={"format": "pt"})
        counters = self.slot.counters
        tensors = {}
        for place, name in enumerate(self.slot.names if self.step else []):
            tensors[f"{place}/step"] = counters.steps.cpu().clone()
            for kind in (MEAN, SQUARE):
                tensors[f"{place}/{kind}"] = numbers[kind][name].cpu().contiguous().clone()
        for place, name in enumerate(self.slot.names):
            if name in of_head and dtype != torch.float32:
                tensors[f"{MASTER}/{place}"] = numbers[VALUES][name].cpu().contiguous().clone()
        save_file(tensors, folder / OPTIMIZER)
        scaled = dtype == torch.float16
        position = {
            "step": self.step,
            "train_seconds": self.train_seconds,
            "losses": torch.stack(self._losses).tolist() if self._losses else [],
            "schedule": {},
            "scaler": {"scale": float(counters.scale), "_growth_tracker": int(counters.growing)} if scaled else {},
            "optimizer": {},
        }
        (folder / STATE).write_text(json.dumps(position), encoding="utf-8")
        base = {**self.engine.base.loaded_as, "pad_token_id": self.engine.data.pad_id}
        (folder / BASE).write_text(json.dumps(base), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, or `PeftSession.save`."""
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
    """Learning rate of each step, by transformers' own schedules."""
    lora = config.lora
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lora.learning_rate)
    schedule = get_scheduler(
        SCHEDULES[lora.scheduler], dummy, num_warmup_steps=round(lora.warmup * steps), num_training_steps=steps
    )
    return [lora.learning_rate * schedule.lr_lambdas[0](step) for step in range(steps)]
