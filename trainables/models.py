"""The base model: its facts without weights, its quantization, and a frozen base that trials borrow.

A base is loaded once per process and lent to one adapter at a time; `attach` and `detach` leave it bit-identical.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerBase

from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.spaces.quantization import UNQUANTIZED, bitsandbytes_arguments
from lorafront.trainables.config import ModelConfig, TrialConfig
from lorafront.trainables.data import seeded_generator
from lorafront.trainables.hub import hub_answers, local_folder_or_file, unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.task import Task


@dataclass(frozen=True)
class ModelFacts:
    """What can be known of a model from its config file.

    Attributes:
        linears: name to (inputs, outputs) of every linear module, the head included.
        positions: longest input that the model takes; None where it does not say.
        vocabulary: rows of the token embedding.
        has_bias: True where a module has a bias that PEFT can train.
        parameters: number of parameters, tied ones once.
    """

    linears: dict[str, tuple[int, int]]
    positions: int | None
    vocabulary: int
    has_bias: bool
    parameters: int


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


def model_facts(config: PretrainedConfig, task: Task) -> ModelFacts:
    """Build the model on the meta device (no weights, no memory) and read what a space needs.

    Raises:
        InvalidInput: the model is not of the kind that the task trains.
    """
    try:
        with torch.device("meta"):
            model = task.auto_class().from_config(config)
    except ValueError as error:
        raise InvalidInput(
            [Problem(("task",), f"a model of type {config.model_type} cannot be trained for {task.name}")]
        ) from error
    return ModelFacts(
        linears=dict(_linears(model)),
        positions=getattr(config.get_text_config(), "max_position_embeddings", None),
        vocabulary=model.get_input_embeddings().weight.shape[0],
        has_bias=any("bias" in name for name, _ in model.named_parameters()),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _linears(model: torch.nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            yield name, (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):  # GPT-2's linear, stored transposed
            yield name, (module.weight.shape[0], module.weight.shape[1])


class FrozenBase:
    """Base weights on a device, lent to one adapter at a time.

    Trials with the same `key` can use the same object one after the other.
    """

    def __init__(self, model: ModelConfig, task: Task, quantization: str) -> None:
        """Load the weights.

        Args:
            model: which model.
            task: which head.
            quantization: how it is stored.
        """
        self.key = base_key(model, task, quantization)
        self.task = task
        self.base_nll: dict[Path, float] = {}  # evaluation of the bare base, by token file: the same for every trial
        self.device = device()
        self.dtype = compute_dtype(quantization, self.device)
        attention = None if model.attention == "auto" else model.attention
        bits = bitsandbytes_arguments(quantization, dtype_name(self.dtype))
        self.model: PreTrainedModel = task.auto_class().from_pretrained(
            model.name,
            revision=model.revision,
            dtype=self.dtype,
            quantization_config=BitsAndBytesConfig(**bits) if bits else None,
            device_map={"": self.device},
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
        )
        self.model.requires_grad_(requires_grad=False)
        for module in self.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # bitsandbytes 0.50 repacks 4-bit weights at the first evaluation on such CPUs and never unpacks them:
                # from then on adapters get no gradient, without an error.
                module.support_avx512bf16_for_cpu = False
        self._biases: dict[str, torch.Tensor] = {}

    def attach(self, config: TrialConfig) -> PeftModel:
        """Put a fresh adapter on the base; returns PEFT's model over the same weights."""
        lora = config.lora
        if lora.bias != "none":
            self._biases = {name: p.detach().clone() for name, p in self.model.named_parameters() if "bias" in name}
        peft_model = get_peft_model(self.model, lora_config(lora, config.targets, self.task.peft_type, config.model))
        _seed_adapter(peft_model, config.seed)
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
        self.model.requires_grad_(requires_grad=False)
        for name, parameter in self.model.named_parameters():
            parameter.grad = None
            if name in self._biases:
                parameter.data.copy_(self._biases[name])
        self._biases = {}
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config  # else PEFT warns that a second adapter is put on


class BaseCache:
    """Keeps the frozen base of a process between trials, one at a time: the old one goes before the new one comes."""

    def __init__(self) -> None:
        self._base: FrozenBase | None = None

    def get(self, model: ModelConfig, task: Task, quantization: str) -> FrozenBase:
        """The base of that key, loaded if it is not the one at hand."""
        if self._base is None or self._base.key != base_key(model, task, quantization):
            self.drop()
            self._base = FrozenBase(model, task, quantization)
        return self._base

    def drop(self) -> None:
        """Forget the base, as after a trial that failed in the middle of using it."""
        self._base = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def base_key(model: ModelConfig, task: Task, quantization: str) -> tuple[str, ...]:
    """What trials must have in common to share frozen weights."""
    return (task.name, model.name, model.revision or "", model.attention, quantization)


def lora_config(lora: LoraConfiguration, targets: tuple[str, ...], task_type: str, model: ModelConfig) -> LoraConfig:
    """PEFT's own configuration of an adapter."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        bias=lora.bias,
        task_type=task_type,
        base_model_name_or_path=model.name,
        revision=model.revision,
    )


@torch.no_grad()
def _seed_adapter(peft_model: PeftModel, seed: int) -> None:
    """Draw the initial A from a generator keyed on (seed, module), row by row: rank 4 is a part of rank 8.

    Same distribution as PEFT's (Kaiming uniform with a = sqrt 5, which is uniform in ±1/sqrt(inputs)); B stays zero.
    """
    for name, parameter in peft_model.named_parameters():
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5
            drawn = seeded_generator(seed, "lora_A", name).random(tuple(parameter.shape), dtype="float32")
            parameter.copy_(torch.from_numpy((2 * drawn - 1) * bound))


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
