"""A frozen base that trials borrow: weights on a device, adapters put on and taken off.

A base is loaded once per process and lent to one adapter at a time; `attach` and `detach` leave it bit-identical.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from lorafront.spaces.quantization import bitsandbytes_arguments
from lorafront.trainables import engines
from lorafront.trainables.config import ModelConfig, TrialConfig
from lorafront.trainables.cpu_products import widen_slow_products
from lorafront.trainables.data import seeded_generator
from lorafront.trainables.model_facts import head_modules, without_weights
from lorafront.trainables.models import compute_dtype, device, dtype_name, load_config
from lorafront.trainables.whole_model import WholeModel, seeded_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.memory_meter import Memory
    from lorafront.trainables.task import Task

SHARE_OF_MEMORY = 1 / 8  # of the machine, for the bases that processes without a GPU keep between trials


class Borrower(Protocol):
    """Who has put adapters on a base."""

    def set_aside(self) -> None:
        """Take them off, because somebody else uses the base; put them on again when the base is asked for again."""


class FrozenBase:
    """Base weights on a device, lent to one adapter at a time.

    Trials with the same `key` can use the same object one after the other.

    Attributes:
        borrower: whose adapters its model computes with.
    """

    borrower: Borrower | None = None
    _whole: WholeModel | None = None  # while every weight trains

    def __init__(self, model: ModelConfig, task: Task, quantization: str, labels: tuple[str, ...] = ()) -> None:
        """Load the weights.

        Args:
            model: which model.
            task: which head.
            quantization: how it is stored.
            labels: names of the classes, where the task has any.

        Raises:
            ValueError: the weights lack something that the task does not train.
        """
        self.key = base_key(model, task, quantization, labels)
        self.task = task
        self.references: dict[Path, dict[str, float]] = {}  # evaluation of the bare base, by token file
        self.probes: dict[tuple[object, ...], Memory] = {}  # peak memory of trials, by all that has a size
        self.device = device()
        if self.device.type == "cpu":
            widen_slow_products()
        self.dtype = compute_dtype(quantization, self.device)
        attention = None if model.attention == "auto" else model.attention
        bits = bitsandbytes_arguments(quantization, dtype_name(self.dtype))
        if bits and task.new_head:
            bits["llm_int8_skip_modules"] = head_modules(without_weights(load_config(model), task, labels))
        auto_class, arguments = task.auto_class(), task.model_arguments(labels)
        # What whoever loads an exported adapter has to say.
        self.loaded_as: Final = {
            "auto_class": auto_class.__name__,
            "arguments": arguments,
            "bitsandbytes": bits,
            "revision": model.revision,
            "attention": attention,
        }
        self.model: PreTrainedModel
        self.model, loaded = auto_class.from_pretrained(
            model.name,
            revision=model.revision,
            dtype=self.dtype,
            quantization_config=BitsAndBytesConfig(**bits) if bits else None,
            device_map={"": self.device},
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=task.new_head,
            output_loading_info=True,
            **arguments,
        )
        missing = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
        self.new_modules = _roots(missing, self.model)
        if missing and not (task.new_head and all(map(self._is_head, self.new_modules))):
            raise ValueError(f"{model.name} has no weights for {', '.join(sorted(missing))}, which {task.name} needs")
        self.model.requires_grad_(requires_grad=False)
        for module in self.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # bitsandbytes 0.50 repacks 4-bit weights at the first evaluation on such CPUs and never unpacks them:
                # from then on adapters get no gradient, without an error.
                module.support_avx512bf16_for_cpu = False
        self._biases: dict[str, torch.Tensor] = {}
        self._heads: dict[str, torch.nn.Module] = {}

    @property
    def bytes(self) -> int:
        """Of everything that stays in memory."""
        return sum(tensor.untyped_storage().nbytes() for tensor in resident_tensors(self.model))

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """Modules that a trial trains in full: new ones, and those that PEFT adds for the task; matched as it does."""
        added = SEQ_CLS_HEAD_NAMES if self.task.peft_type == "SEQ_CLS" else []
        ends = (*self.new_modules, *added)
        return tuple(name for name, _ in self.model.named_modules() if name.endswith(ends))

    def _is_head(self, name: str) -> bool:
        return any(name == head or name.startswith(f"{head}.") for head in head_modules(self.model))

    def lend(self, to: Borrower | None) -> bool:
        """Whose adapters the model computes with from now on; None is nobody's. True where it was not theirs before.

        Raises:
            RuntimeError: a trial of stock PEFT has it, which cannot be set aside.
        """
        if self.borrower is to:
            return False
        if self.borrower is not None:
            self.borrower.set_aside()
        self.borrower = to
        return True

    def train_whole(self, config: TrialConfig) -> PreTrainedModel:
        """Let every weight train, and a fresh head where the base has none."""
        self.lend(self)
        self._whole = self._set_aside_weights()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                drawn_as = seeded_head(self.new_modules, name)
                if drawn_as is not None:
                    spread = head_spread(self.model.config)
                    parameter.copy_(initial_head(config.seed, drawn_as, tuple(parameter.shape), spread))
        if config.training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        return self.model

    def _set_aside_weights(self) -> WholeModel:
        return WholeModel(self.model)

    def attach(self, config: TrialConfig) -> PeftModel:
        """Put a fresh adapter, and a fresh head where the base has none, on the base.

        Returns:
            PEFT's model over the same weights.
        """
        lora = config.lora
        self.lend(self)
        if lora.bias != "none":
            self._biases = {name: p.detach().clone() for name, p in self.model.named_parameters() if "bias" in name}
        arguments = lora_config(lora, config.targets, self.task.peft_type, config.model, self.new_modules)
        arguments.fan_in_fan_out = any(isinstance(module, Conv1D) for module in self.model.modules())  # GPT-2
        self._heads = dict(self.model.named_modules()) if self.task.new_head else {}
        peft_model = get_peft_model(self.model, arguments)
        self._heads = {
            name: self._heads[name]
            for name, module in self.model.named_modules()
            if isinstance(module, ModulesToSaveWrapper)
        }
        self._seed(peft_model, config.seed)
        if config.training.gradient_checkpointing:
            # It also sets a hook on the embedding, which lets gradients through; of two, one would stay for ever.
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        return peft_model

    def _seed(self, peft_model: PeftModel, seed: int) -> None:
        _seed_adapter(peft_model, seed, self.new_modules)

    def detach(self, model: PeftModel | PreTrainedModel) -> None:
        """Take the adapter off, or give the weights back, and undo what the trial changed."""
        if self.model.is_gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
            self.model.disable_input_require_grads()
        if self._whole is not None:
            self._whole.give_back()
            self._whole = None
        elif isinstance(model, PeftModel):
            model.unload()
        for name, module in self._heads.items():
            self.model.set_submodule(name, module)  # PEFT leaves the trained copy of the head
        self._heads = {}
        self.model.requires_grad_(requires_grad=False)
        for name, parameter in self.model.named_parameters():
            parameter.grad = None
            if name in self._biases:
                parameter.data.copy_(self._biases[name])
        self._biases = {}
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config  # else PEFT warns that a second adapter is put on
        self.borrower = None

    def set_aside(self) -> None:
        """Asked of whoever has borrowed it: a trial of stock PEFT keeps it until it is detached."""
        raise RuntimeError("stock PEFT has put an adapter on this base; detach it first")


def _roots(keys: Collection[str], model: PreTrainedModel) -> list[str]:
    """Modules that hold these parameters: a head as a whole, otherwise the module itself."""
    prefix = f"{model.base_model_prefix}."
    return sorted({key.rsplit(".", 1)[0] if key.startswith(prefix) else key.split(".")[0] for key in keys})


class BaseCache:
    """Keeps the frozen bases of a process between trials.

    On a GPU one at a time: another one would count into the measured peak. Elsewhere as many as fit into a small part
    of the machine's memory.
    """

    def __init__(self) -> None:
        self._bases: dict[tuple[str, ...], FrozenBase] = {}  # the one that was used last stands last
        self._references: dict[tuple[str, ...], dict[Path, dict[str, float]]] = {}

    def get(self, model: ModelConfig, task: Task, quantization: str, labels: tuple[str, ...] = ()) -> FrozenBase:
        """The base of that key, loaded if it is not at hand."""
        key = base_key(model, task, quantization, labels)
        if key not in self._bases:
            if torch.cuda.is_available():
                self.drop()
            self._bases[key] = FrozenBase(model, task, quantization, labels)
            self._bases[key].references = self._references.setdefault(key, {})
        self._bases[key] = self._bases.pop(key)
        # As many processes as the machine has room for do the same.
        room = psutil.virtual_memory().total * SHARE_OF_MEMORY * torch.get_num_threads() / (psutil.cpu_count() or 1)
        while len(self._bases) > 1 and sum(base.bytes for base in self._bases.values()) > room:
            del self._bases[next(iter(self._bases))]
            gc.collect()
        return self._bases[key]

    def drop(self) -> None:
        """Forget all bases, as after a trial that failed in the middle of using one."""
        self._bases.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def base_key(model: ModelConfig, task: Task, quantization: str, labels: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What trials must have in common to share frozen weights."""
    return engines.base_key(model, task.name, quantization, labels)


def lora_config(
    lora: LoraConfiguration, targets: tuple[str, ...], task_type: str, model: ModelConfig, heads: Sequence[str] = ()
) -> LoraConfig:
    """PEFT's own configuration of an adapter; `heads` are trained in full and saved with it."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        bias=lora.bias,
        task_type=task_type,
        modules_to_save=list(heads) or None,
        base_model_name_or_path=model.name,
        revision=model.revision,
    )


@torch.no_grad()
def _seed_adapter(peft_model: PeftModel, seed: int, heads: Sequence[str]) -> None:
    """Draw the initial A from a generator keyed on (seed, module), row by row: rank 4 is a part of rank 8.

    Same distribution as PEFT's (Kaiming uniform with a = sqrt 5, which is uniform in ±1/sqrt(inputs)); B stays zero.
    A new head is drawn from the same seed, so that it does not depend on which trials the process ran before.
    """
    spread = head_spread(peft_model.config)
    for name, parameter in peft_model.named_parameters():
        if ".lora_A." in name:
            parameter.copy_(initial_a(seed, name, tuple(parameter.shape)))
        elif ".modules_to_save." in name and any(f".{head}.modules_to_save." in name for head in heads):
            parameter.copy_(initial_head(seed, name, tuple(parameter.shape), spread))


def initial_a(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """float32[r, i]: the A of a fresh adapter, by its name in PEFT's model."""
    drawn = seeded_generator(seed, "lora_A", name).random(shape, dtype="float32")
    return torch.from_numpy((2 * drawn - 1) * shape[1] ** -0.5)


def initial_head(seed: int, name: str, shape: tuple[int, ...], spread: float) -> torch.Tensor:
    """float32: a parameter of a fresh head, by its name in PEFT's model."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)  # the scale of a norm
    return torch.from_numpy(seeded_generator(seed, "head", name).standard_normal(shape, dtype="float32") * spread)


def head_spread(config: object) -> float:
    """Standard deviation of a fresh head's weights."""
    return getattr(config, "initializer_range", None) or 0.02


def resident_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that a model keeps: parameters, buffers, and what bitsandbytes hangs on its weights."""
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        for owner in (parameter, getattr(parameter, "quant_state", None)):
            yield from _tensors_of(owner)


def _tensors_of(owner: object) -> Iterator[torch.Tensor]:
    for name in ("absmax", "code", "offset", "CB", "SCB"):
        value = getattr(owner, name, None)
        if isinstance(value, torch.Tensor):
            yield value
    nested = getattr(owner, "state2", None)
    if nested is not None:
        yield from _tensors_of(nested)
