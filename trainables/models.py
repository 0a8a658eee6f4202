"""The base model: its files, its quantization, and a frozen base that trials borrow.

A base is loaded once per process and lent to one adapter at a time; `attach` and `detach` leave it bit-identical.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.spaces.quantization import UNQUANTIZED, bitsandbytes_arguments
from lorafront.trainables.config import ModelConfig, TrialConfig
from lorafront.trainables.data import seeded_generator
from lorafront.trainables.hub import hub_answers, local_folder_or_file, unreachable
from lorafront.trainables.model_facts import head_modules, without_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.task import Task


def device() -> torch.device:
    """Where trials of this process train."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(quantization: str, on: torch.device) -> torch.dtype:
    """The dtype of activations: what a 16/32-bit base is stored in; bfloat16 for quantized ones where it exists."""
    if quantization in UNQUANTIZED:
        return dtype_named(UNQUANTIZED[quantization])
    return (
        torch.bfloat16 if on.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


def dtype_named(name: str) -> torch.dtype:
    """torch.bfloat16 for `bfloat16`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def cannot_run(quantization: str, on: torch.device) -> str | None:
    """Why this machine cannot train on that quantization, and what would; None where it can."""
    if on.type == "cuda" and quantization == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        major, minor = torch.cuda.get_device_capability(on)
        return f"GPU sm_{major}{minor} has no bf16; use fp16"
    if quantization not in UNQUANTIZED:
        try:
            import bitsandbytes  # noqa: F401  # only whether it loads
        except (ImportError, OSError, RuntimeError) as error:
            return f"{quantization} needs bitsandbytes, which does not load here ({error}); use bf16 or fp32"
    return None


def load_config(model: ModelConfig) -> PretrainedConfig:
    """The model's config; never runs code that the model carries.

    Raises:
        InvalidInput: the model is missing, or needs remote code.
    """
    return _load(model, AutoConfig)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which must be able to pad (an end token will do).

    Raises:
        InvalidInput: it is missing, or has neither a padding nor an end token.
    """
    tokenizer: PreTrainedTokenizerBase = _load(model, AutoTokenizer)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise InvalidInput(
            [
                Problem(
                    ("model",),
                    f"the tokenizer of {model.name} has neither a padding nor an end token; set one and save it",
                )
            ]
        )
    return tokenizer


def _load(model: ModelConfig, auto_class: Any) -> Any:
    try:
        place = local_folder_or_file(model.name)
    except InvalidInput as error:
        raise InvalidInput([Problem(("model",), problem.message) for problem in error.problems]) from error
    if place is not None:
        _check_folder(place)
    try:
        return auto_class.from_pretrained(
            model.name,
            revision=model.revision,
            trust_remote_code=False,
            local_files_only=place is None and not hub_answers(),
        )
    except (OSError, ValueError) as error:  # what transformers raises for missing files and for remote code
        if "trust_remote_code" in str(error):
            message = f"{model.name} needs code from its repository, which lorafront does not run"
        else:
            own = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            message = unreachable("model folder", model.name, error) if place is None else f"{model.name}: {own}"
        raise InvalidInput([Problem(("model",), message)]) from error


def _check_folder(place: Path) -> None:
    """A folder must hold a config, and weights that can be read without running code."""
    if not (place / "config.json").is_file():
        raise InvalidInput([Problem(("model",), f"{place} is not a model folder: it has no config.json")])
    if not any(place.glob("*.safetensors")):
        raise InvalidInput(
            [Problem(("model",), f"{place} has no *.safetensors; pickled weights are not loaded, convert them first")]
        )


class FrozenBase:
    """Base weights on a device, lent to one adapter at a time.

    Trials with the same `key` can use the same object one after the other.
    """

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
        self.device = device()
        self.dtype = compute_dtype(quantization, self.device)
        attention = None if model.attention == "auto" else model.attention
        bits = bitsandbytes_arguments(quantization, dtype_name(self.dtype))
        if bits and task.new_head:
            bits["llm_int8_skip_modules"] = head_modules(without_weights(load_config(model), task, labels))
        auto_class, arguments = task.auto_class(), task.model_arguments(labels)
        # What whoever loads an exported adapter has to say.
        self.loaded_as: Final = {"auto_class": auto_class.__name__, "arguments": arguments, "bitsandbytes": bits}
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
        self.new_modules: Final = _roots(missing, self.model)
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

    def _is_head(self, name: str) -> bool:
        return any(name == head or name.startswith(f"{head}.") for head in head_modules(self.model))

    def attach(self, config: TrialConfig) -> PeftModel:
        """Put a fresh adapter, and a fresh head where the base has none, on the base.

        Returns:
            PEFT's model over the same weights.
        """
        lora = config.lora
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
        _seed_adapter(peft_model, config.seed, self.new_modules)
        if config.training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()
        return peft_model

    def detach(self, peft_model: PeftModel) -> None:
        """Take the adapter off and undo what the trial changed."""
        if self.model.is_gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
            self.model.disable_input_require_grads()
        peft_model.unload()
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


def _roots(keys: Collection[str], model: PreTrainedModel) -> list[str]:
    """Modules that hold these parameters: a head as a whole, otherwise the module itself."""
    prefix = f"{model.base_model_prefix}."
    return sorted({key.rsplit(".", 1)[0] if key.startswith(prefix) else key.split(".")[0] for key in keys})


class BaseCache:
    """Keeps the frozen base of a process between trials, one at a time: the old one goes before the new one comes."""

    def __init__(self) -> None:
        self._base: FrozenBase | None = None

    def get(self, model: ModelConfig, task: Task, quantization: str, labels: tuple[str, ...] = ()) -> FrozenBase:
        """The base of that key, loaded if it is not the one at hand."""
        if self._base is None or self._base.key != base_key(model, task, quantization, labels):
            self.drop()
            self._base = FrozenBase(model, task, quantization, labels)
        return self._base

    def drop(self) -> None:
        """Forget the base, as after a trial that failed in the middle of using it."""
        self._base = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def base_key(model: ModelConfig, task: Task, quantization: str, labels: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What trials must have in common to share frozen weights."""
    return (task.name, model.name, model.revision or "", model.attention, quantization, *labels)


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
    spread = getattr(peft_model.config, "initializer_range", None) or 0.02
    for name, parameter in peft_model.named_parameters():
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5
            drawn = seeded_generator(seed, "lora_A", name).random(tuple(parameter.shape), dtype="float32")
            parameter.copy_(torch.from_numpy((2 * drawn - 1) * bound))
        elif ".modules_to_save." in name and any(f".{head}.modules_to_save." in name for head in heads):
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1)  # the scale of a norm
            else:
                drawn = seeded_generator(seed, "head", name).standard_normal(tuple(parameter.shape), dtype="float32")
                parameter.copy_(torch.from_numpy(drawn * spread))


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
