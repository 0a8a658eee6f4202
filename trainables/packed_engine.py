"""Many LoRA trials in one pass over one frozen base: what stock PEFT would compute for each, in one go for all.

`PackedEngine` holds the base; each trial is a `PackedSession` in a slot. Guarantees: a trial's numbers depend on its
own configuration and seed, not on its slot or its neighbours; what it saves is what `PeftSession` saves. Trades away
what cannot share a pass (`NotPackable`, trainables/engines.py).

Shape legend: k slots, b rows of a slot in a pass, t tokens of the longest row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import psutil
import torch
from peft import PeftModel

from lorafront.trainables import heartbeat
from lorafront.trainables.data import TokenData, TokenRows
from lorafront.trainables.data import load as load_tokens
from lorafront.trainables.evaluate import longest_first
from lorafront.trainables.frozen_base import SHARE_OF_MEMORY
from lorafront.trainables.keyed_random import word
from lorafront.trainables.packed_adamw import Rates, update
from lorafront.trainables.packed_base import PackedBase, evaluating, probe
from lorafront.trainables.packed_bucket import Pass, bare
from lorafront.trainables.packed_calls import Draws, DropoutCalls, PackedCalls
from lorafront.trainables.packed_head import PackedHead
from lorafront.trainables.packed_lora import GroupOfLinears
from lorafront.trainables.packed_session import PackedSession
from lorafront.trainables.packed_slot import Stack
from lorafront.trainables.packed_task import Batch, packed_task
from lorafront.trainables.session import never
from lorafront.trainables.task import task_named

if TYPE_CHECKING:
    from lorafront.trainables.config import TrialConfig
    from lorafront.trainables.frozen_base import BaseCache, FrozenBase
    from lorafront.trainables.packed_base import Group


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
        self.base.lend(None)
        self.data: Final[TokenData] = load_tokens(config.tokens)
        self.model: Final = self.base.model
        self.model.config.pad_token_id = self.data.pad_id  # a classifier on a decoder looks for the end of a row by it
        self.device: Final = self.base.device
        self.config: Final = config
        self.longest: Final = max(
            int(rows.lengths.max()) for rows in (self.data.train, self.data.evaluation, *self.data.also.values())
        )
        keep = self._small() if keep_dense is None else keep_dense
        self.packed: Final = PackedBase(self.model, self.base.dtype, self.base.trained_heads, keep=keep)
        self.head: Final = PackedHead(self.base)
        self.rows: Final = packed_task(config.task, self.model)
        self.total_parameters: Final = PeftModel.get_nb_trainable_parameters(self.model)[1]
        self._sites = torch.tensor([word(name) for name in self.packed.linears], dtype=torch.int32).to(self.device)
        self._own_sites = self._base_sites()
        self._anchor = torch.zeros((), device=self.device, requires_grad=True)
        self._now = bare()
        self._places_of: dict[tuple[int, int], torch.Tensor] = {}
        self._stack: Stack | None = None
        self._sessions: list[PackedSession] = []

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
        start = time.perf_counter()
        with self._whole(goals):
            sessions = self._stacked(list(goals))
            self._attach()
            self.model.train()
            while all(one.rows_seen < rows for one, rows in goals.items()) and not interrupted():
                self._step(sessions)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        share = (time.perf_counter() - start) / max(1, len(sessions))
        for session in sessions:
            session.train_seconds += share

    @contextmanager
    def _whole(self, sessions: Iterable[PackedSession]) -> Iterator[None]:
        """Whatever breaks off in the block, such as memory that runs out, leaves every slot as after its last step."""
        try:
            yield
        except BaseException:
            self._give_back()
            for session in sessions:
                session.rewind()
            raise
        finally:
            self._now = bare()

    def evaluate(self, sessions: Sequence[PackedSession]) -> None:
        """Measure in shared passes; `evaluate` of each then gives its own."""
        alike: dict[float, list[PackedSession]] = {}
        for session in sessions:
            alike.setdefault(session.share, []).append(session)
        for share, members in alike.items():
            start = time.perf_counter()
            with self._whole(members):
                found = self._quality(members, share)
            seconds = (time.perf_counter() - start) / len(members)
            for session, quality in zip(members, found, strict=True):
                session.quality, session.eval_seconds = quality, seconds

    def leave(self, session: PackedSession) -> None:
        """A trial gives back its slot."""
        self._sessions = [one for one in self._sessions if one is not session]
        if self._stack is not None and session.slot in self._stack.slots:
            self.keep_counters()
            self._stack = None  # the slots that stay find their numbers, and are stacked again
        session.slot.drop()

    def keep_counters(self) -> None:
        """Give the slots what the optimizer counted."""
        if self._stack is not None:
            self._stack.keep_counters()

    def unstack(self) -> None:
        """The numbers of every slot are its own, until the next pass."""
        self.keep_counters()
        self._stack = None
        for session in self._sessions:
            session.slot.move_out()

    def close(self) -> None:
        """Give the base back as it was; the slots keep their numbers."""
        self.unstack()
        self._sessions, self._now = [], bare()
        self._give_back()

    def references(self) -> dict[str, float]:
        """Evaluation before the first step: B is zero, so it is the base's own, once per base and data."""
        if self.task.new_head:
            return {}  # an untrained head says nothing
        known = self.base.references
        if self.config.tokens not in known:
            with self._whole([]):
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
        with (
            torch.no_grad(),
            DropoutCalls() as calls,
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
        ):
            probe(self.model)
        self.model.train(was)
        names = [word(f"dropout {index}") for index in range(calls.count)]
        return torch.tensor(names, dtype=torch.int32).to(self.device)

    def _stacked(self, sessions: list[PackedSession]) -> list[PackedSession]:
        """These sessions and no others, in the order of their slots; stacked anew where that changes."""
        wanted = {id(one.slot) for one in sessions}
        if self._stack is None or wanted != {id(slot) for slot in self._stack.slots}:
            self.keep_counters()
            self._stack = None  # first: where memory runs out below, each slot still knows where its numbers are
            for one in self._sessions:
                if id(one.slot) not in wanted:
                    one.slot.move_out()
            self._stack = Stack([one.slot for one in sessions], self.packed, self.head)
        by_slot = {id(one.slot): one for one in sessions}
        return [by_slot[id(slot)] for slot in self._stack.slots]

    def _attach(self) -> None:
        """From now on the model computes with the adapters of `self._now`; engines of one base use it in turns."""
        if not self.base.lend(self):
            return
        self.packed.open(self._outputs)
        self.head.open(lambda: self._now, self._anchor)
        if self.config.training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def _give_back(self) -> None:
        if self.base.borrower is self:
            self.base.lend(None)

    def set_aside(self) -> None:
        """The model is as it was, until the next pass."""
        self.packed.close()
        self.head.close()
        if self.model.is_gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
            self.model.disable_input_require_grads()  # the hook that it left on the embedding

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
        scale_k = stack.state.scale  # of these losses; the update may change it
        weights_k = self._sent(1 / targets_k) * scale_k
        losses_k = torch.zeros(slots, device=self.device)
        values = [bucket.as_type(self.base.dtype) for bucket in stack.buckets]
        sixteen_bit = self.base.dtype != torch.float32
        for index, batch in enumerate(batches):
            on_device = {name: self._sent(tensor) for name, tensor in batch.items()}
            moments = self._sent(torch.tensor([one.step * passes + index for one in sessions], dtype=torch.int32))
            stack.draw(moments, self._sites)
            rows, tokens = batch["input_ids"].shape
            places = self._places(rows // slots, tokens)
            self._now = Pass(stack.buckets, values, places, first=index == 0)
            with (
                self._calls(stack, moments),
                torch.autocast(self.device.type, dtype=self.base.dtype, enabled=sixteen_bit),
            ):
                losses_r = self.rows.losses(on_device, weights_k.repeat_interleave(rows // slots))
            losses_r.sum().backward()  # type: ignore[no-untyped-call]
            losses_k += losses_r.detach().view(slots, -1).sum(1)
        try:
            norm_k = update(stack.buckets, stack.state, self._rates(sessions), scaled=self.base.dtype == torch.float16)
        except Exception as error:  # whatever it was, it is not to be taken for something that left the slots whole
            raise RuntimeError("the optimizer broke off in the middle of a step") from error
        losses_k = torch.where(stack.state.alive, losses_k / scale_k, torch.nan)
        for place, session in enumerate(sessions):
            session.stepped(losses_k[place], norm_k[place])
        heartbeat.beat()

    def _rates(self, sessions: Sequence[PackedSession]) -> Rates:
        asked = [
            [one.rates[one.step], one.config.lora.weight_decay, one.config.training.max_grad_norm] for one in sessions
        ]
        return Rates(*self._sent(torch.tensor(asked, dtype=torch.float32)).unbind(1))

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the device, without waiting for what it computes."""
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _places(self, rows: int, tokens: int) -> torch.Tensor:
        """int32[b t]: number of each token of a slot; the same whatever the batch is padded to."""
        known = self._places_of
        if (rows, tokens) not in known:
            row_b, token_t = (torch.arange(size, dtype=torch.int32, device=self.device) for size in (rows, tokens))
            known[rows, tokens] = (row_b[:, None] * self.longest + token_t).flatten()
        return known[rows, tokens]

    def _calls(self, stack: Stack, moments: torch.Tensor) -> Any:
        """A context for the forward pass; none where the model's code computes everything as it is."""
        recomputed = self.config.training.gradient_checkpointing  # outside of this context: it has to do the same
        on_cpu = self.device.type == "cpu" and self.base.dtype != torch.float32 and not recomputed
        draws = Draws(stack.keys(moments, self._own_sites), self.longest) if len(self._own_sites) else None
        return PackedCalls(draws, on_cpu=on_cpu) if on_cpu or draws else nullcontext()

    def _batch(self, rows_k: list[list[int]]) -> Batch:
        """Rows of all slots, slot by slot; filled up to the longest of them."""
        if all(rows == rows_k[0] for rows in rows_k):
            return self._repeated(self.data.train, rows_k[0], len(rows_k))
        return self._repeated(self.data.train, [row for rows in rows_k for row in rows], 1)

    def _repeated(self, rows: TokenRows, chosen: list[int], times: int) -> Batch:
        """A batch of these rows, so many times on end."""
        batch = self.task.collate(rows, chosen, self.data.pad_id)
        repeated = {name: tensor.repeat(times, *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}
        return self.rows.prepared(repeated)

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
        place = {id(session): index for index, session in enumerate(ordered)}
        return [found[place[id(session)]] for session in sessions] or found

    def _tally(self, rows: TokenRows, slots: int) -> torch.Tensor:
        """float64[k, n]: the task's sums over all rows, longest first as in `evaluate.tally`."""
        size = self.config.training.eval_batch_size or self.config.lora.batch_size
        sums = []
        for chosen in longest_first(rows, size):
            batch = self._repeated(rows, chosen, slots)
            tallied = self.rows.tally({name: tensor.to(self.device) for name, tensor in batch.items()})
            sums.append(tallied.view(slots, -1, tallied.shape[1]).sum(1))
            heartbeat.beat()
        return torch.stack(sums).sum(0).cpu()
