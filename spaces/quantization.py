"""How a frozen base can be stored, and bitsandbytes' arguments for it. Plain data, no torch."""

from __future__ import annotations

from typing import Any, Literal, get_args

Quantization = Literal["nf4", "nf4_double", "fp4", "int8", "bf16", "fp16", "fp32"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
FOUR_BIT = {"nf4": ("nf4", False), "nf4_double": ("nf4", True), "fp4": ("fp4", False)}
UNQUANTIZED = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def bitsandbytes_arguments(quantization: str, compute_dtype: str) -> dict[str, Any] | None:
    """Arguments of `transformers.BitsAndBytesConfig`; None for a base that is not quantized.

    Args:
        quantization: one of `QUANTIZATIONS`.
        compute_dtype: torch's name of the dtype of activations, such as `bfloat16`.
    """
    if quantization == "int8":
        return {"load_in_8bit": True}
    if quantization not in FOUR_BIT:
        return None
    kind, double = FOUR_BIT[quantization]
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": compute_dtype,
    }
