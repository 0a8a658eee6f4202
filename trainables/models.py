"""The base model by its files: config and tokenizer, and in which dtype it computes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from lorafront.spaces.errors import InvalidInput, Problem, did_you_mean
from lorafront.spaces.quantization import UNQUANTIZED
from lorafront.trainables.config import ModelConfig
from lorafront.trainables.hub import hub_answers, local_folder_or_file, unreachable
from lorafront.trainables.shipped_architectures import SHIPPED, shipped_config


def device() -> torch.device:
    """Where trials of this process train."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(quantization: str, on: torch.device) -> torch.dtype:
    """The dtype of activations: what a 16/32-bit base is stored in; bfloat16 for quantized ones where it exists."""
    if quantization in UNQUANTIZED:
        return dtype_named(UNQUANTIZED[quantization])
    return torch.float16 if on.type == "cuda" and _is_without_bfloat16() else torch.bfloat16


def _is_without_bfloat16() -> bool:
    """Whether the GPU of this machine lacks it; of those of other machines nothing is known here."""
    return torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)


def dtype_named(name: str) -> torch.dtype:
    """torch.bfloat16 for `bfloat16`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def cannot_run(quantization: str, on: torch.device) -> str | None:
    """Why this machine cannot train on that quantization, and what would; None where it can."""
    if on.type == "cuda" and quantization == "bf16" and _is_without_bfloat16():
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


def load_architecture(name: str) -> PretrainedConfig:
    """A config without weights: of a folder that has a `config.json`, of a shipped architecture, or from the hub.

    Raises:
        InvalidInput: it is none of them; names what is shipped.
    """
    if name in SHIPPED and not Path(name).exists():
        return shipped_config(name)
    try:
        return _load(ModelConfig(name=name), AutoConfig, weights=False)
    except InvalidInput as error:
        hint = f"{did_you_mean(name.lower(), SHIPPED)} Shipped architectures: {', '.join(SHIPPED)}"
        raise InvalidInput([Problem(("model",), f"{p.message.rstrip('.')}.{hint}") for p in error.problems]) from error


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


def _load(model: ModelConfig, auto_class: Any, *, weights: bool = True) -> Any:
    try:
        place = local_folder_or_file(model.name)
    except InvalidInput as error:
        raise InvalidInput([Problem(("model",), problem.message) for problem in error.problems]) from error
    if place is not None:
        _check_folder(place, weights=weights)
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


def _check_folder(place: Path, *, weights: bool) -> None:
    """A folder must hold a config, and where they are needed weights that can be read without running code."""
    if not (place / "config.json").is_file():
        raise InvalidInput([Problem(("model",), f"{place} is not a model folder: it has no config.json")])
    if weights and not any(place.glob("*.safetensors")):
        raise InvalidInput(
            [Problem(("model",), f"{place} has no *.safetensors; pickled weights are not loaded, convert them first")]
        )
