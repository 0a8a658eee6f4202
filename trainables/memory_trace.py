"""Peak memory of a trial before it runs: its session trains two steps on tensors that have shapes and no content.

No weights and no GPU are needed, only the model's config. The session is the one that trains (`PeftSession`, with its
own memory probe), so the count is that of the real step on a CPU, to the byte. For a CUDA GPU the same trace takes the
ways and makes the tensors that `cuda_step` knows of; that is unmeasured, and less sure by what is listed there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, cast
from unittest import mock

import numpy as np
import torch
from torch.utils._mode_utils import no_dispatch
from transformers import BitsAndBytesConfig
from transformers.quantizers import AutoHfQuantizer

from lorafront.spaces.quantization import bitsandbytes_arguments
from lorafront.trainables.contentless import Contentless, tensors_of
from lorafront.trainables.cuda_step import KERNELS, cuda_calls
from lorafront.trainables.data import TokenData
from lorafront.trainables.frozen_base import FrozenBase, base_key
from lorafront.trainables.memory_meter import ROUND, LiveStorages, Memory
from lorafront.trainables.model_facts import head_modules, without_weights
from lorafront.trainables.models import compute_dtype, dtype_name
from lorafront.trainables.peft_session import Batch, PeftSession
from lorafront.trainables.whole_model import WholeModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

    from lorafront.trainables.config import TrialConfig
    from lorafront.trainables.data import TokenRows
    from lorafront.trainables.task import Task

CPU = torch.device("cpu")
TRACED = "traced"  # source of a peak that was not measured
DeviceKind = Literal["cpu", "cuda"]
# Elements of a parameter whose 8-bit states stand in managed memory on CUDA, not in the allocator's (bitsandbytes'
# optim/optimizer.py, `get_state_buffer`).
PAGED_FROM = 100_000


def trace(
    trial: TrialConfig, config: PretrainedConfig, task: Task, rows: TokenRows, device: DeviceKind = "cpu"
) -> Memory:
    """Peak of two optimizer steps of a trial, as its session would measure it; on CUDA without cuBLAS' workspaces.

    Args:
        trial: the trial; its token file and its folder of weights are not read.
        config: of the model.
        task: which head.
        rows: to train on; of those that the trial sees the largest batch is made.
        device: where it would train.
    """
    return traced(trial, config, task, rows, device).memory


def traced(
    trial: TrialConfig, config: PretrainedConfig, task: Task, rows: TokenRows, device: DeviceKind = "cpu"
) -> TracedSession:
    """As `trace`; the session, which has the whole timeline."""
    data = TokenData(rows, rows, pad_id=0)
    base = ShapesOnly(trial, config, task)
    with Contentless() as mode:
        return TracedSession(base, trial, data, mode, device)


class Timeline(LiveStorages):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Remembers when each storage came and went, and what the step was doing then.

    Attributes:
        sizes: bytes of every storage, in the order in which they came.
        made: the segment in which each came.
        events: (index of the storage, +1 where it comes and -1 where it goes, segment).
        phases: of every segment, in order: `resident`, then `forward`, `backward` and `update` in turn.
    """

    def __init__(
        self, resident: Iterable[torch.Tensor], kernels: Mapping[str, Callable[..., Any]], mode: Contentless
    ) -> None:
        """Start with what is there.

        Args:
            resident: tensors that are there before.
            kernels: by operation, what is done in its place.
            mode: carries out the others; it must be off.
        """
        self._kernels = kernels
        self._run = mode.run
        self.sizes: list[int] = []
        self.made: list[int] = []
        self.events: list[tuple[int, int, int]] = []
        self.phases = ["resident"]
        self._indices: dict[int, int] = {}
        super().__init__(resident)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note which phase this is: what comes after a backward pass is the update until something is looked up."""
        name = _name(func)
        now = self.phases[-1]
        if torch._C._current_graph_task_id() >= 0:  # noqa: SLF001  # torch's only sign of a backward pass
            now = "backward"
        elif now == "backward":
            now = "update"
        elif now == "resident" or "embedding" in name:
            now = "forward"
        if now != self.phases[-1]:
            self.phases.append(now)
        kernel = self._kernels.get(name)
        if kernel is not None:
            with self:  # what it makes counts
                return kernel(*args, **(kwargs or {}))
        result = self._run(func, args, kwargs or {})
        for tensor in tensors_of(result):
            self._add(tensor)
        return result

    def index(self, tensor: torch.Tensor) -> int:
        """Which storage a living tensor has."""
        return self._indices[id(self._seen[tensor.untyped_storage()._cdata])]  # noqa: SLF001  # as in the class above

    def happened(self) -> np.ndarray:
        """int64[events, 3]: see `events`."""
        return np.fromiter(chain.from_iterable(self.events), np.int64).reshape(-1, 3)

    def peak_without(self, elsewhere: Collection[int]) -> int:
        """Bytes at the peak where the storages of these indices do not count."""
        rounded = -(-np.array(self.sizes, dtype=np.int64) // ROUND) * ROUND
        rounded[list(elsewhere)] = 0
        events = self.happened()
        return int(np.cumsum(events[:, 1] * rounded[events[:, 0]]).max())

    def _add(self, tensor: torch.Tensor) -> None:
        before = self.live
        super()._add(tensor)
        if self.live == before:
            return
        storage = tensor.untyped_storage()
        self._indices[id(self._seen[storage._cdata])] = len(self.sizes)  # noqa: SLF001  # as in the class above
        self.events.append((len(self.sizes), 1, len(self.phases) - 1))
        self.sizes.append(storage.nbytes())
        self.made.append(len(self.phases) - 1)

    def _drop(self, key: int, ref: Any, size: int) -> None:
        super()._drop(key, ref, size)
        index = self._indices.pop(id(ref), None)
        if index is not None:  # else the timeline itself is being cleared away
            self.events.append((index, -1, len(self.phases) - 1))


class TracedSession(PeftSession):
    """The session up to its memory probe. The batch alone has content: what is made depends on whether it is padded.

    Attributes:
        timeline: of the two steps.
        states: storage (index in the timeline) of each 8-bit optimizer state to elements of its parameter.
        scales: storage of the scales of each such state to elements of its parameter.
    """

    def __init__(
        self, base: ShapesOnly, config: TrialConfig, data: TokenData, mode: Contentless, device: DeviceKind
    ) -> None:
        """Trace.

        Args:
            base: a base without content.
            config: the trial.
            data: its rows.
            mode: the one that is on.
            device: where it would train.
        """
        self._mode = mode
        self._device = device
        self.states: dict[int, int] = {}
        self.scales: dict[int, int] = {}
        super().__init__(base, config, data)

    def _measure(self, work: Callable[[], object]) -> Memory:
        on_cpu = self._device == "cpu"
        batch = () if on_cpu else self._batch.values()  # which stands in main memory, and is copied
        self.timeline = Timeline((*self._resident(), *batch), {} if on_cpu else KERNELS, self._mode)
        int8 = self.config.lora.quantization == "int8"
        calls = contextlib.nullcontext() if on_cpu else cuda_calls(self.base.dtype, int8=int8)
        with self._mode.aside(), self.timeline, calls:
            work()
        for parameter, state in self.optimizer.state.items():
            for found, names in ((self.states, ("state1", "state2")), (self.scales, ("absmax1", "absmax2"))):
                found.update(
                    {self.timeline.index(state[name]): parameter.numel() for name in names if "absmax1" in state}
                )
        paged = [index for index, size in self.states.items() if self._device == "cuda" and size >= PAGED_FROM]
        peak = self.timeline.peak_without(paged)
        return Memory(peak, peak, 0, TRACED)

    def _start_optimizer(self) -> None:
        with _tables_have_content(self.config.training.optimizer):
            super()._start_optimizer()

    def _largest_batch(self) -> Batch:
        with no_dispatch():
            batch = super()._largest_batch()
        self._batch: Batch = {name: self._mode.know(tensor) for name, tensor in batch.items()}
        return self._batch


@cache
def _name(func: object) -> str:
    return str(func)


@contextlib.contextmanager
def _tables_have_content(optimizer: str) -> Iterator[None]:
    """The table of numbers that bitsandbytes makes and looks at is a real one."""
    if optimizer != "paged_adamw_8bit":
        yield
        return
    from bitsandbytes import functional

    make = functional.create_dynamic_map

    def with_content(*args: Any, **kwargs: Any) -> torch.Tensor:
        with no_dispatch():
            table: torch.Tensor = make(*args, **kwargs)
            return table

    with mock.patch.object(functional, "create_dynamic_map", with_content):
        yield


class ShapesOnly(FrozenBase):
    """A base whose tensors have no content, for one adapter."""

    def __init__(self, trial: TrialConfig, config: PretrainedConfig, task: Task) -> None:
        """Build the model on the meta device."""
        quantization, labels = trial.lora.quantization, trial.labels
        self.key = base_key(trial.model, task, quantization, labels)
        self.task = task
        self.references = {trial.tokens: {}}  # there is nothing to evaluate
        self.probes = {}
        self.device = CPU
        self.dtype = compute_dtype(quantization, CPU)
        attention = None if trial.model.attention == "auto" else trial.model.attention
        self.model = unloaded_model(config, task, quantization, labels, self.dtype, attention)
        self.model.name_or_path = trial.model.name  # as if loaded from there, which PEFT compares
        self.new_modules = [name for name in head_modules(self.model) if "." not in name] if task.new_head else []
        self._biases = {}
        self._heads = {}

    def train_whole(self, config: TrialConfig) -> PreTrainedModel:
        """Likewise."""
        with torch.device("meta"):
            model = super().train_whole(config)
        materialise(model, _placed, CPU)
        return model

    def _set_aside_weights(self) -> WholeModel:
        return WholeModel(self.model, keep=False)

    def attach(self, config: TrialConfig) -> PeftModel:
        """As the real one does; afterwards everything stands on the CPU, by shape. Call it under `Contentless`."""
        with torch.device("meta"):
            peft_model = super().attach(config)
        materialise(peft_model, _placed, CPU)
        return peft_model

    def _seed(self, peft_model: PeftModel, seed: int) -> None:
        """No values are drawn."""


def unloaded_model(
    config: PretrainedConfig,
    task: Task,
    quantization: str,
    labels: tuple[str, ...],
    dtype: torch.dtype,
    attention: str | None,
) -> PreTrainedModel:
    """The model on the meta device, frozen, its linear modules replaced as transformers does when it loads weights.

    Args:
        config: of the model.
        task: which head.
        quantization: how its weights would be stored.
        labels: names of the classes.
        dtype: of activations and of what is not quantized.
        attention: which implementation; none is transformers' choice.
    """
    model = without_weights(config, task, labels, dtype, attention)
    bits = bitsandbytes_arguments(quantization, dtype_name(dtype))
    if bits is not None:
        if task.new_head:
            bits["llm_int8_skip_modules"] = head_modules(model)
        AutoHfQuantizer.from_config(BitsAndBytesConfig(**bits)).preprocess_model(model, device_map={"": CPU})
    model.requires_grad_(requires_grad=False)
    _cast(model, dtype)
    return model


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give every parameter that is not quantized the dtype in which its weights would be loaded."""
    plan = model._get_dtype_plan(dtype)  # noqa: SLF001  # T5 keeps some in float32
    cast: dict[int, torch.nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if type(parameter) is torch.nn.Parameter:
                full = f"{prefix}.{name}"
                wanted = next((to for pattern, to in plan.items() if re.search(pattern, full)), dtype)
                made = cast.setdefault(id(parameter), torch.nn.Parameter(parameter.to(wanted), requires_grad=False))
                setattr(module, name, made)


def materialise(
    model: torch.nn.Module, placed: Callable[[torch.nn.Parameter, Any], torch.nn.Parameter], device: torch.device
) -> None:
    """Give every tensor of an unloaded model a place, tied ones the same.

    Args:
        model: on the meta device, in part or as a whole.
        placed: makes a parameter of one and its module.
        device: of buffers, which become zero.
    """
    done: dict[int, torch.nn.Parameter] = {}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in done:
                done[id(parameter)] = placed(parameter, module)
            setattr(module, name, done[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros_like(buffer, device=device))


def _placed(parameter: torch.nn.Parameter, module: Any) -> torch.nn.Parameter:
    """By shape alone, quantized ones in their packed form."""
    quantized = {"Params4bit": _four_bit, "Int8Params": _eight_bit}.get(type(parameter).__name__)
    if quantized is not None:  # by name: without a quantized base bitsandbytes need not load
        return quantized(
            parameter, torch.empty(module.out_features, module.in_features, dtype=torch.bfloat16, device=CPU)
        )
    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=CPU)
    return torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)


def _four_bit(parameter: Any, weight: torch.Tensor) -> torch.nn.Parameter:
    """Packed by bitsandbytes' own function. A plain parameter: its subclass of Tensor would hide the fake one."""
    from bitsandbytes.functional import create_dynamic_map, name2qmap, quantize_4bit

    with no_dispatch():  # a table of numbers that bitsandbytes makes once per process
        name2qmap.setdefault("dynamic", create_dynamic_map())
    packed, state = quantize_4bit(
        weight,
        blocksize=parameter.blocksize,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        quant_storage=parameter.quant_storage,
    )
    found: Any = torch.nn.Parameter(packed, requires_grad=False)
    for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage"):
        setattr(found, name, getattr(parameter, name))
    found.quant_state, found.bnb_quantized = state, True
    return cast("torch.nn.Parameter", found)


def _eight_bit(parameter: Any, weight: torch.Tensor) -> torch.nn.Parameter:
    from bitsandbytes.functional import int8_vectorwise_quant

    rows, scales, _ = int8_vectorwise_quant(weight.to(torch.float16))
    found: Any = torch.nn.Parameter(rows, requires_grad=False)
    found.CB, found.SCB, found.has_fp16_weights = rows, scales, parameter.has_fp16_weights
    return cast("torch.nn.Parameter", found)
