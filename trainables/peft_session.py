"""Stock PEFT fine-tuning, read from top to bottom: the reference that every other engine must equal.

Guarantees: seeded (on a CPU the same seed gives the same losses to the last digit, in a fresh process or a reused one);
peak memory is measured on the largest batch of the data. Trades away speed: one configuration per pass.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from transformers import get_scheduler

from lorafront.trainables import heartbeat
from lorafront.trainables.data import TokenData, TokenRows, largest_batch, row_order
from lorafront.trainables.data import load as load_tokens
from lorafront.trainables.evaluate import tally
from lorafront.trainables.frozen_base import BaseCache, FrozenBase, resident_tensors
from lorafront.trainables.master_weights import MasterWeights
from lorafront.trainables.memory_meter import Memory, MemoryCapExceeded, cap_memory, measure_peak
from lorafront.trainables.models import device, dtype_name, load_tokenizer
from lorafront.trainables.session import Measurements, never
from lorafront.trainables.task import task_named
from lorafront.trainables.user_code import load_reference
from lorafront.trainables.whole_model import WEIGHTS, counts, load_weights, save_weights

if TYPE_CHECKING:
    from lorafront.trainables.config import TrialConfig

# Our names to those of `transformers.get_scheduler`, whose plain `constant` has no warm-up.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
ADAPTER, OPTIMIZER, STATE, BASE = "adapter", "optimizer.safetensors", "state.json", "base.json"
VALUES = ("alpha", "learning_rate", "weight_decay", "warmup", "scheduler")  # of a configuration: no shape follows them
MASTER = "master"  # prefix of float32 copies among the optimizer's tensors
Batch = dict[str, torch.Tensor]


class PeftSession:
    """One LoRA fine-tuning with PEFT, or a full one, on a borrowed base. Implements `Session`."""

    def __init__(self, base: FrozenBase, config: TrialConfig, data: TokenData, *, references: bool = True) -> None:
        """Attach a fresh adapter and measure peak memory; nothing is trained yet.

        Args:
            base: borrowed until `close`.
            config: of the trial.
            data: its token rows.
            references: evaluate the bare base, unless that was done.
        """
        start = time.perf_counter()
        torch.manual_seed(config.seed)
        self.base: Final = base
        self.config: Final = config
        self.data: Final = data
        self.task: Final = base.task
        self.batch_size: Final = config.lora.batch_size
        self.total_steps: Final = -(-config.rows // config.rows_per_step)
        self.step = 0
        self.train_seconds = 0.0
        self._losses: list[torch.Tensor] = []
        self._grad_norm = torch.zeros(())
        self.whole: Final = config.lora.method == "full"
        self.model = base.train_whole(config) if self.whole else base.attach(config)
        self.model.train()
        self.model.config.pad_token_id = data.pad_id  # a classifier on a decoder looks for the end of a row by it
        self.trained: Final = [p for p in self.model.parameters() if p.requires_grad]
        self._start_optimizer()
        self._batches: Iterator[Batch] | None = None
        self.memory: Final = self._probe_memory()
        self.references: Final = self._bare_base() if references else {}
        self.setup_seconds: Final = time.perf_counter() - start
        torch.manual_seed(config.seed)  # dropout starts the same whether the base was evaluated just now or before

    @property
    def rows_seen(self) -> int:
        """Training rows so far."""
        return self.step * self.config.rows_per_step

    def train(self, rows: int, interrupted: Callable[[], bool] = never) -> None:
        """Take optimizer steps until at least `rows` training rows have been seen, or until interrupted."""
        if self._batches is None:
            self._batches = self._loader()
        start = time.perf_counter()
        while self.rows_seen < rows and not interrupted():
            self._optimizer_step(list(islice(self._batches, self.config.lora.gradient_accumulation)))
        if self.base.device.type == "cuda":
            torch.cuda.synchronize(self.base.device)
        self.train_seconds += time.perf_counter() - start

    def _optimizer_step(self, batches: list[Batch]) -> None:
        """One step over micro-batches; the loss is the mean over all their targets together."""
        targets = max(1, sum(self.task.targets(batch) for batch in batches))
        loss_sum = torch.zeros((), device=self.base.device)
        sixteen_bit = self.base.dtype != torch.float32
        for batch in batches:
            on_device = {name: tensor.to(self.base.device, non_blocking=True) for name, tensor in batch.items()}
            with torch.autocast(self.base.device.type, dtype=self.base.dtype, enabled=sixteen_bit):
                loss = self.task.nll(self.model, on_device) / targets
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
        self.masters.take_gradients()
        self.scaler.unscale_(self.optimizer)
        self._grad_norm = torch.nn.utils.clip_grad_norm_(self.masters.parameters, self.config.training.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.masters.give_values()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._losses.append(loss_sum)  # read once per rung: each read waits for the device
        self.step += 1
        heartbeat.beat()

    def evaluate(self) -> dict[str, Any]:
        """Evaluate on the evaluation split and the second sets; the user's functions at the end of the trial.

        Before that on a part of each set, in proportion to the rows trained on (`TokenRows.part`): what is compared at
        a rung has seen the same rows, and a trial that ends there costs little.
        """
        start = time.perf_counter()
        rung = max((rows for rows in self.config.rungs if rows <= self.rows_seen), default=self.config.rungs[0])
        quality = self._quality(rung / self.config.rows)  # a step may reach beyond the rung, and not all by as much
        seconds = time.perf_counter() - start
        # PEFT's count knows that 4-bit weights are packed.
        trainable, total = counts(self.model) if self.whole else self.model.get_nb_trainable_parameters()
        measured = Measurements(
            trainable_params=trainable,
            trainable_percent=100 * trainable / total,
            adapter_mb=sum(p.numel() * p.element_size() for p in self.trained) / 1e6,
            train_seconds=self.train_seconds,
            setup_seconds=self.setup_seconds,
            eval_seconds=seconds,
            compute_dtype=dtype_name(self.base.dtype),
        )
        measured.update(self.memory.metrics())
        if self._losses:
            measured["train_loss"] = float(torch.stack(self._losses).mean())
            measured["grad_norm"] = float(self._grad_norm)
            self._losses = []
        measured.update(speed(self.data.train, self.config.seed, self.rows_seen, self.train_seconds))
        own = self._functions() if self.rows_seen >= self.config.rows else {}
        return {**measured, **quality, **{f"base_{k}": v for k, v in self.references.items()}, **own}

    def _quality(self, share: float = 1.0) -> dict[str, float]:
        """The task's metrics on the evaluation split, and the loss on every second set as `eval_NAME_loss`."""
        size = self.config.training.eval_batch_size or self.batch_size

        def metrics(rows: TokenRows) -> dict[str, float]:
            taken = rows.part(share)
            return self.task.metrics(tally(self.model, self.task, taken, self.data.pad_id, size, self.base.device))

        second = {f"eval_{name}_loss": metrics(rows)["eval_loss"] for name, rows in self.data.also.items()}
        return {**metrics(self.data.evaluation), **second}

    def _functions(self) -> dict[str, float]:
        """The user's own measurements; whatever they draw or switch does not reach the training."""
        if not self.config.functions:
            return {}
        tokenizer = load_tokenizer(self.config.model)
        devices = [self.base.device] if self.base.device.type == "cuda" else []
        cap_memory(None, self.base.device)  # nobody predicts what they take
        measured = {}
        with torch.no_grad(), torch.random.fork_rng(devices):
            for name, reference in self.config.functions.items():
                self.model.eval()
                try:
                    value = load_reference(reference, self.config.code)(self.model, tokenizer)
                except Exception as error:  # a user's function raises what it likes; the trial says which one did
                    reason = f"objective {name} ({reference}): {type(error).__name__}: {error}"
                    raise RuntimeError(reason) from error
                self.model.train()
                measured[name] = value.item() if hasattr(value, "item") else value
                if not isinstance(measured[name], (int, float)):
                    raise TypeError(f"{reference} gave {value!r}, which is no number")
        cap_memory(self.config.memory_cap, self.base.device)
        if any(getattr(module, "merged", False) for module in self.model.modules()):
            raise RuntimeError(
                "a function merged the adapter into the base, which other trials use; unmerge is not exact"
            )
        return measured

    def save(self, folder: Path) -> None:
        """Write adapter (an ordinary PEFT folder), optimizer state, and position.

        A full fine-tuning at its end leaves the position alone: nothing goes on from there, nobody exports what is only
        there to compare with, and it would be 2 bytes a weight and 12 of the optimizer.
        """
        if self.whole and self.rows_seen >= self.config.rows:
            write_position(folder, {"step": self.step}, self.base, self.data)
            return
        if self.whole:
            save_weights(self.model, folder / WEIGHTS)
        else:
            self.model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)  # else PEFT asks the hub
        leaves = dict(_leaves(self.optimizer.state_dict()["state"], ()))
        # Cloned, because bitsandbytes shares one table between states and safetensors keeps none twice.
        tensors = {k: v.detach().cpu().clone() for k, v in leaves.items() if isinstance(v, torch.Tensor)}
        masters = {f"{MASTER}/{place}": value for place, value in self.masters.state().items()}
        save_file({**tensors, **masters}, folder / OPTIMIZER)
        position = {
            "step": self.step,
            "train_seconds": self.train_seconds,
            "losses": torch.stack(self._losses).tolist() if self._losses else [],  # since the last rung
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if not callable(v) and k != "lr_lambdas"},
            "scaler": self.scaler.state_dict(),
            "optimizer": {k: v for k, v in leaves.items() if k not in tensors},
            "rng": torch.get_rng_state().numpy().tobytes().hex(),
        }
        if self.base.device.type == "cuda":
            position["rng_cuda"] = torch.cuda.get_rng_state(self.base.device).numpy().tobytes().hex()
        write_position(folder, position, self.base, self.data)

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        from peft import load_peft_weights, set_peft_model_state_dict

        if self.whole:
            load_weights(self.model, folder / WEIGHTS)
        else:
            adapter = load_peft_weights(str(folder / ADAPTER), device=str(self.base.device))
            set_peft_model_state_dict(self.model, adapter)
        position = json.loads((folder / STATE).read_text(encoding="utf-8"))
        current = self.optimizer.state_dict()
        state: dict[Any, Any] = {}
        masters: dict[str, torch.Tensor] = {}
        for key, value in [*load_file(folder / OPTIMIZER).items(), *position["optimizer"].items()]:
            index, *names = key.split("/")
            if index == MASTER:
                masters[names[0]] = value
                continue
            here = state.setdefault(int(index), {})
            for name in names[:-1]:
                here = here.setdefault(name, {})
            here[names[-1]] = value
        self.masters.load(masters)
        self.optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
        lambdas = [None] * len(self.optimizer.param_groups)  # functions of the step; they are here already
        self.schedule.load_state_dict({**position["schedule"], "lr_lambdas": lambdas})
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.scaler.load_state_dict(position["scaler"])
        self.step = position["step"]
        self.train_seconds = position["train_seconds"]
        self._losses = list(torch.tensor(position["losses"], dtype=torch.float32, device=self.base.device))
        self._batches = None  # made anew, from the row that comes next
        if "rng" in position:  # a pack draws from no generator
            torch.set_rng_state(_byte_tensor(position["rng"]))
        if "rng_cuda" in position:
            torch.cuda.set_rng_state(_byte_tensor(position["rng_cuda"]), self.base.device)

    def close(self) -> None:
        """Give the base back as it was."""
        self._batches = None
        self.base.detach(self.model)

    def _start_optimizer(self) -> None:
        lora, training = self.config.lora, self.config.training
        if training.optimizer == "paged_adamw_8bit":
            import bitsandbytes

            make: Any = bitsandbytes.optim.PagedAdamW8bit
        else:
            make = partial(torch.optim.AdamW, fused=True)  # one kernel for all parameters; transformers' default
        self.masters = MasterWeights(self.trained)
        self.optimizer: torch.optim.Optimizer = make(
            self.masters.parameters, lr=lora.learning_rate, weight_decay=lora.weight_decay
        )
        self.schedule = get_scheduler(
            SCHEDULES[lora.scheduler],
            self.optimizer,
            num_warmup_steps=round(lora.warmup * self.total_steps),
            num_training_steps=self.total_steps,
        )
        # float16 gradients underflow without it; for other dtypes it passes everything through.
        self.scaler = torch.amp.GradScaler(self.base.device.type, enabled=self.base.dtype == torch.float16)

    def _probe_memory(self) -> Memory:
        """Peak of two optimizer steps on the largest batch, then everything as it was before.

        The second step is the one with optimizer state. Measured here and not while training, so that the number does
        not depend on which rows happened to come, and costs nothing later. The count on a CPU is exact, and slow: every
        operation goes through Python. So trials of one base that differ in nothing that has a size share it.
        """
        largest = self._largest_batch()
        sizes = self._sizes(largest)
        if sizes not in self.base.probes or self.base.device.type == "cuda":
            self.base.probes[sizes] = self._two_steps(largest)
        memory, cap = self.base.probes[sizes], self.config.memory_cap
        if cap is not None and memory.allocated > cap and self.base.device.type == "cpu":  # measured before
            raise MemoryCapExceeded(0, memory.allocated, cap)
        return memory.in_this_process()

    def _sizes(self, batch: Batch) -> tuple[object, ...]:
        """All of a trial that decides how much memory it takes on its base."""
        lora, training = self.config.lora, self.config.training
        shaping = lora.model_dump_json(exclude={*VALUES, "dropout"})
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        padded = bool((batch["attention_mask"] == 0).any())  # attention needs a mask then
        return shaping, lora.dropout > 0, self.config.targets, training.model_dump_json(), shapes, padded

    def _two_steps(self, largest: Batch) -> Memory:
        before = [p.detach().to("cpu", copy=True) for p in self.trained]  # on a GPU they would count
        batches = [largest] * min(2, self.config.lora.gradient_accumulation)

        def two_steps() -> None:
            self._optimizer_step(batches)
            self._optimizer_step(batches)

        # A scaler may skip both steps, and no optimizer state would be there to be counted.
        self.scaler = torch.amp.GradScaler(self.base.device.type, enabled=False)
        memory = self._measure(two_steps)
        with torch.no_grad():
            for parameter, value in zip(self.trained, before, strict=True):
                parameter.copy_(value)
        self.step, self._losses = 0, []
        self._start_optimizer()
        return memory

    def _measure(self, work: Callable[[], object]) -> Memory:
        return measure_peak(work, self._resident, self.base.device, self.config.memory_cap)

    def _resident(self) -> Iterator[torch.Tensor]:
        """Tensors that are there before a step."""
        yield from resident_tensors(self.model)
        yield from self.masters.copies

    def _largest_batch(self) -> Batch:
        """A batch as large as the rows that this trial will see can make one."""
        rows = self.data.train
        chosen = largest_batch(rows, self.config.seed, self.total_steps * self.config.rows_per_step, self.batch_size)
        return self.task.collate(rows, chosen, self.data.pad_id)

    def _bare_base(self) -> dict[str, float]:
        """Evaluation before the first step; B is zero, so it is the base's own, once per base and data."""
        if self.task.new_head:
            return {}  # an untrained head says nothing
        known = self.base.references
        if self.config.tokens not in known:
            known[self.config.tokens] = self._quality()
        return known[self.config.tokens]

    def _loader(self) -> Iterator[Batch]:
        """Batches from the next unseen row on, without end."""
        workers = self.config.training.loader_workers
        # Not `self` in the function below: a session that failed would keep its base alive through it.
        task, rows, pad_id = self.task, self.data.train, self.data.pad_id
        upcoming = islice(row_order(len(self.data.train), self.config.seed), self.rows_seen, None)
        loader: DataLoader[Any] = DataLoader(
            _Rows(len(self.data.train)),
            batch_size=self.batch_size,
            sampler=upcoming,  # any iterable of indices will do
            collate_fn=lambda indices: task.collate(rows, indices, pad_id),
            num_workers=workers,
            pin_memory=self.base.device.type == "cuda",
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # its own, so that starting a loader draws nothing from the global one
        )
        return iter(loader)


def open_session(config: TrialConfig, bases: BaseCache, *, references: bool = True) -> PeftSession:
    """A session for a trial, on the base that `bases` holds or loads; `references` as for the session."""
    torch.set_num_threads(config.threads)
    cap_memory(config.memory_cap, device())
    base = bases.get(config.model, task_named(config.task, config.code), config.lora.quantization, config.labels)
    return PeftSession(base, config, load_tokens(config.tokens), references=references)


def speed(rows: TokenRows, seed: int, rows_seen: int, seconds: float) -> Measurements:
    """How fast a trial trained on so many rows in so many seconds; nothing where it has not."""
    if seconds <= 0:
        return Measurements()
    seen = list(islice(row_order(len(rows), seed), rows_seen))
    return Measurements(
        tokens_per_second=int(rows.lengths[seen].sum()) / seconds, seconds_per_epoch=seconds * len(rows) / rows_seen
    )


def write_position(folder: Path, position: dict[str, Any], base: FrozenBase, data: TokenData) -> None:
    """What a checkpoint has beside its tensors: how far the trial is, and how its base is loaded."""
    (folder / STATE).write_text(json.dumps(position), encoding="utf-8")
    (folder / BASE).write_text(json.dumps({**base.loaded_as, "pad_token_id": data.pad_id}), encoding="utf-8")


class _Rows(Dataset[int]):
    """Row numbers; the token rows stay where they are until a batch is collated."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> int:
        return index


def _leaves(tree: dict[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(`0/exp_avg`, value) of a nested state; bitsandbytes nests one level deeper than torch."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield "/".join((*path, str(key))), value


def _byte_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
