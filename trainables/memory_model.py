"""Peak memory in closed form: two traced steps per kind of trial, then any rank, batch, length and depth by arithmetic.

Trials of one kind do the same operations on tensors of other sizes. So a step is traced with a rank, a batch size and
lengths that are primes which divide no size of the model: in the bytes of each storage they are found again as factors,
and the storage's size is known for all others. Depth is extrapolated: steps of two and of three layers are traced, and
what a phase of the step holds at its peak grows by the same bytes with every further layer, since layers are alike.
Of a model of a few layers the whole is traced.

On a CPU the prediction is the step's, to the byte, but for what `exact` says. For a CUDA GPU it is what
`torch.cuda.max_memory_allocated` would say of the same two steps, by `cuda_step`'s formulas; those numbers are
unmeasured until `benchmarks/memory_gpu.py` has run on a GPU. What a process holds beside (context, fragmentation, the
managed memory of a paged optimizer) is not in it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorafront.spaces import modules
from lorafront.spaces.errors import NotTraced
from lorafront.trainables.config import Attention, ModelConfig, TrialConfig
from lorafront.trainables.cuda_step import cublas_workspaces
from lorafront.trainables.data import TokenRows
from lorafront.trainables.memory_meter import ROUND
from lorafront.trainables.memory_trace import PAGED_FROM, DeviceKind, TracedSession, traced
from lorafront.trainables.model_facts import model_facts, without_weights

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.config import TrainingConfig
    from lorafront.trainables.model_facts import ModelFacts
    from lorafront.trainables.task import Task

DEPTHS = (2, 3)
FEW = 4  # layers up to which the whole model is one trace, and costs less than two
FORMAT = 3  # of the files; part of their name
LATEST = 9  # major compute capability from which cuBLAS' workspaces are the larger ones
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")  # what a step consists of changes with them
PARTS = ("base", "adapters", "gradients", "optimizer", "activations", "logits", "temporary", "workspace")
# What a storage's size is: bytes, or elements of the parameter whose 8-bit state or whose scales it holds.
BYTES, STATE, PAGED_STATE, SCALES = range(4)
# bitsandbytes' optim/optimizer.py, `Optimizer2State.init_state`
EIGHT_BIT_FROM = 4096  # elements; smaller states stay in float32
EIGHT_BIT_BLOCK = 256  # elements to a float32 scale


@dataclass(frozen=True)
class Shapes:
    """Sizes of the largest batch.

    Attributes:
        rows: of a micro-batch.
        tokens: of the longest row; for an encoder-decoder of the longest prompt.
        completion: tokens of the longest completion, for an encoder-decoder; 0 elsewhere.
        padded: rows differ in length, so attention needs a mask.
    """

    rows: int
    tokens: int
    completion: int = 0
    padded: bool = True

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor], task: Task) -> Shapes:
        """Those of a batch that the task collated."""
        rows, tokens = batch["input_ids"].shape
        completion = batch["labels"].shape[1] if task.peft_type == "SEQ_2_SEQ_LM" else 0
        return cls(rows, tokens, completion, padded=bool((batch["attention_mask"] == 0).any()))


@dataclass(frozen=True)
class Breakdown:
    """Predicted bytes at the peak, by what they are for.

    Attributes:
        parts: by name, see `PARTS`.
        phase: of the step in which the peak is: forward, backward or update.
    """

    parts: Mapping[str, int]
    phase: str

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Step:
    """One traced step with its sizes as products of powers.

    Attributes:
        factors: int64[storages], sizes but for the powers.
        powers: int64[storages, 4], of rank, rows, tokens, completion.
        unit: int64[storages], of the sizes: `BYTES` and the three after it.
        part: int64[storages], index into `PARTS`.
        index: int64[events], which storage comes or goes.
        sign: int64[events], +1 or -1.
        starts: int64[segments], the first event of each.
        phases: [segments], what the step was doing.
    """

    factors: np.ndarray
    powers: np.ndarray
    unit: np.ndarray
    part: np.ndarray
    index: np.ndarray
    sign: np.ndarray
    starts: np.ndarray
    phases: tuple[str, ...]

    @classmethod
    def of(cls, session: TracedSession, primes: tuple[int, ...], vocabulary: int, device: DeviceKind) -> Step:
        """From what was traced.

        Args:
            session: which was traced.
            primes: that stood for (rank, rows, tokens, completion).
            vocabulary: rows of the embedding.
            device: for which it was traced.
        """
        line = session.timeline
        left = np.array(line.sizes, dtype=np.int64)
        unit = np.full(len(left), BYTES, dtype=np.int64)
        for sizes, kind in ((session.states, STATE if device == "cpu" else PAGED_STATE), (session.scales, SCALES)):
            left[list(sizes)], unit[list(sizes)] = list(sizes.values()), kind
        powers = np.zeros((len(left), len(primes)), dtype=np.int64)
        for column, prime in enumerate(primes):
            while prime > 1 and (divides := left % prime == 0).any():
                powers[divides, column] += 1
                left[divides] //= prime
        events = line.happened()
        starts = np.flatnonzero(np.diff(events[:, 2], prepend=-1))
        part = _parts(line.phases, np.array(line.made), powers, left % vocabulary == 0)
        phases = tuple(line.phases[segment] for segment in events[starts, 2])
        return cls(left, powers, unit, part, events[:, 0], events[:, 1], starts, phases)

    def peaks(self, values: tuple[int, ...]) -> np.ndarray:
        """float64[segments, parts]: bytes at the peak of each segment."""
        sizes = _bytes(self.factors * np.prod(np.array(values, dtype=np.int64) ** self.powers, axis=1), self.unit)
        rounded = -(-sizes // ROUND) * ROUND
        change = self.sign * rounded[self.index]
        live = np.cumsum(change)
        ends = [*self.starts[1:], len(live)]
        at = [start + int(np.argmax(live[start:end])) for start, end in zip(self.starts, ends, strict=True)]
        by_part = np.zeros((len(at), len(PARTS)))
        for part in range(len(PARTS)):
            by_part[:, part] = np.cumsum(np.where(self.part[self.index] == part, change, 0))[at]
        return by_part


def _bytes(sizes: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """int64[storages]: bytes of sizes of these units."""
    small = sizes < EIGHT_BIT_FROM
    state = np.where(small, 4 * sizes, sizes)
    scales = np.where(small, 0, 4 * -(-sizes // EIGHT_BIT_BLOCK))
    return np.select(
        [unit == STATE, unit == PAGED_STATE, unit == SCALES],
        [state, np.where(sizes < PAGED_FROM, state, 0), scales],
        default=sizes,
    )


def _parts(phases: list[str], made: np.ndarray, powers: np.ndarray, of_vocabulary: np.ndarray) -> np.ndarray:
    """int64[storages]: index into `PARTS`, by when a storage came and what its size depends on."""
    phase = np.array(phases)[made]
    with_rank, with_batch = powers[:, 0] > 0, (powers[:, 1:] > 0).any(axis=1)
    conditions = [
        (phase == "resident") & ~with_rank & ~with_batch,
        (phase == "resident") & ~with_batch,
        (phase == "backward") & ~with_batch & with_rank,
        (phase == "update") & ~with_batch,
        (phase == "forward") & with_batch & ~of_vocabulary,
        with_batch & of_vocabulary,
    ]
    return np.select(conditions, range(len(conditions)), default=PARTS.index("temporary"))


Kind = tuple[object, ...]


def _kind(lora: LoraConfiguration, training: TrainingConfig, shapes: Shapes) -> Kind:
    """What trials have in common whose steps do the same operations."""
    return (
        lora.method, lora.modules, lora.quantization, lora.dropout > 0, lora.bias, lora.gradient_accumulation > 1,
        training.optimizer, training.gradient_checkpointing, shapes.padded, shapes.rows > 1, shapes.completion > 0,
    )  # fmt: skip


class MemoryModel:
    """Predicts for one model and task; what was traced is kept."""

    def __init__(
        self,
        config: PretrainedConfig,
        task: Task,
        labels: tuple[str, ...] = (),
        attention: Attention = "auto",
        cache: Path | None = None,
        device: DeviceKind = "cpu",
        capability: int = LATEST,
    ) -> None:
        """Trace nothing yet.

        Args:
            config: of the model.
            task: which head.
            labels: names of the classes; none stands for two.
            attention: which implementation.
            cache: folder of what was traced before; none keeps it in this process.
            device: where the step runs.
            capability: major compute capability of the GPU, which decides on cuBLAS' workspaces; 48 MiB less before 9.
        """
        self._config = config
        self._model = ModelConfig(name="traced", attention=attention)
        self._task = task
        self._labels = labels or ("0", "1")
        self._cache = cache
        self._device = device
        self._workspace = cublas_workspaces(capability) if device == "cuda" else 0
        self._facts: dict[int, ModelFacts] = {}  # by depth
        self._steps: dict[Kind, tuple[Step, Step] | NotTraced] = {}
        self._predicted: dict[tuple[Kind, tuple[int, ...]], Breakdown] = {}

    def predict(self, lora: LoraConfiguration, training: TrainingConfig, shapes: Shapes) -> Breakdown:
        """Peak bytes of a training step.

        Args:
            lora: the configuration.
            training: optimizer and checkpointing.
            shapes: of the largest batch; `rows` and `tokens` count, whatever `lora.batch_size` says.

        Raises:
            NotTraced: the model cannot be traced, such as one that leaves out layers at random.
        """
        kind, values = _kind(lora, training, shapes), (lora.rank, shapes.rows, shapes.tokens, max(1, shapes.completion))
        if (kind, values) not in self._predicted:
            self._predicted[kind, values] = self._predict(self._traced(kind, lora, training, shapes), values)
        return self._predicted[kind, values]

    @property
    def _depths(self) -> tuple[int, ...]:
        layers = _depth(self._config)
        return (layers,) if layers <= FEW else DEPTHS

    def _predict(self, steps: tuple[Step, Step], values: tuple[int, ...]) -> Breakdown:
        low, high = steps
        shallow, deeper = low.peaks(values), high.peaks(values)
        layers = _depth(self._config)
        found = shallow + (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0]) * (deeper - shallow)
        top = int(found.sum(axis=1).argmax())
        parts = {name: round(found[top, i]) for i, name in enumerate(PARTS)}
        return Breakdown({**parts, "workspace": self._workspace}, low.phases[top])

    def _traced(
        self, kind: Kind, lora: LoraConfiguration, training: TrainingConfig, shapes: Shapes
    ) -> tuple[Step, Step]:
        if kind not in self._steps:
            try:
                low, *further = (self._kept(kind, lora, training, shapes, depth) for depth in self._depths)
                high = further[0] if further else low
            except Exception as error:  # noqa: BLE001  # models ask for what these tensors cannot say in many ways
                self._steps[kind] = NotTraced(f"{type(error).__name__}: {error}")
            else:
                same = low.phases == high.phases
                self._steps[kind] = (low, high) if same else NotTraced("depths differ in more than layers")
        found = self._steps[kind]
        if isinstance(found, NotTraced):
            raise found
        return found

    def _kept(self, kind: Kind, lora: LoraConfiguration, training: TrainingConfig, shapes: Shapes, depth: int) -> Step:
        """From the folder, or traced and left there for the next search."""
        if self._cache is None:
            return self._trace(lora, training, shapes, depth)
        versions = [version(name) for name in PACKAGES]
        facts = [
            FORMAT, kind, depth, versions, self._config.to_json_string(), self._task.name, len(self._labels),
            self._model.attention, self._device,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        file = self._cache / f"{digest}.npz"
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as found:  # closed where it is cut, too
                arrays = {name: found[name] for name in found.files}
            return Step(**{**arrays, "phases": tuple(arrays["phases"].tolist())})
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):  # not there yet, or cut short
            step = self._trace(lora, training, shapes, depth)
        with contextlib.suppress(OSError):  # a full disk, or no root yet: traced again next time
            file.parent.mkdir(exist_ok=True)
            aside = file.with_suffix(f".{os.getpid()}.npz")
            np.savez(aside, **{**vars(step), "phases": np.array(step.phases)})
            aside.replace(file)
        return step

    def _trace(self, lora: LoraConfiguration, training: TrainingConfig, shapes: Shapes, depth: int) -> Step:
        config = with_depth(self._config, depth)
        if depth not in self._facts:
            self._facts[depth] = model_facts(config, self._task, self._labels)
        facts = self._facts[depth]
        rank, rows, tokens, completion = self._primes
        rows = rows if shapes.rows > 1 else 1
        completion = completion if shapes.completion else 1
        trial = TrialConfig(
            task=self._task.name,
            model=self._model,
            training=training.model_copy(update={"rows": rows, "epochs": None, "steps": None}),
            lora=lora.model_copy(
                update={
                    "rank": rank, "batch_size": rows, "gradient_accumulation": min(2, lora.gradient_accumulation)
                }
            ),
            targets=modules.resolve(lora.modules, list(facts.linears)).targets,
            rungs=(rows * 2,),
            seed=0,
            tokens=Path("traced"),
            labels=self._labels,
        )  # fmt: skip
        longest = ([0] * (tokens + (completion if shapes.completion else 0)), tokens if shapes.completion else 1)
        shorter = ([0] * (tokens - 1), min(longest[1], tokens - 2))
        batch = [longest, *[shorter if shapes.padded else longest] * (rows - 1)]
        session = traced(trial, config, self._task, TokenRows.build(batch), self._device)
        return Step.of(session, (rank, rows, tokens, completion), facts.vocabulary, self._device)

    @cached_property
    def _primes(self) -> tuple[int, int, int, int]:
        """(rank, rows, tokens, completion) that divide no size of the model."""
        model = without_weights(with_depth(self._config, self._depths[0]), self._task, self._labels)
        sizes = {size for tensor in (*model.parameters(), *model.buffers()) for size in tensor.shape}
        free = (prime for prime in _primes() if all(size % prime for size in sizes))
        rows, tokens, completion = (next(free) for _ in range(3))
        # With so large a rank the optimizer keeps every state in 8 bits, with scales; smaller ones follow from that.
        rank = next(prime for prime in free if prime > EIGHT_BIT_FROM)
        return rank, rows, tokens, completion


def exact(config: PretrainedConfig, longest: int) -> bool:
    """Whether the closed form is that of the step on a CPU, to the byte.

    It is not where sizes change what is done: attention leaves out its mask within a sliding window; and where an
    encoder and a decoder of different depths are extrapolated alike.

    Args:
        config: of the model.
        longest: tokens of a row at most.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    decoder = getattr(text, "num_decoder_layers", None) or getattr(text, "decoder_layers", None)
    return (window is None or longest < window) and (decoder is None or decoder == _depth(config))


def _primes() -> Iterator[int]:
    """Primes from 11 on: small ones stand in the sizes of dtypes and blocks."""
    found: list[int] = []
    number = 2
    while True:
        if all(number % prime for prime in found):
            found.append(number)
            if number > 7:  # noqa: PLR2004
                yield number
        number += 1


def _depth(config: PretrainedConfig) -> int:
    return int(config.get_text_config().num_hidden_layers)


def with_depth(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same model with so many layers; of an encoder-decoder so many on both sides."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    before = _depth(config)
    text.num_hidden_layers = layers
    for name in ("num_decoder_layers", "decoder_layers", "encoder_layers"):
        if getattr(text, name, None) is not None:
            setattr(text, name, layers)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == before:  # one entry per layer, such as `layer_types`
            setattr(text, name, [value[layer % before] for layer in range(layers)])
    return changed
