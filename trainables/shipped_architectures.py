"""Architectures of well-known open models: facts of their public `config.json`, no weights.

What a model needs in memory follows from its dimensions alone, so these can be planned for without a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Name to (the model type of transformers, its dimensions).
SHIPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("bert", {"pad_token_id": 0}),  # transformers' defaults are bert-base-uncased
    "gpt2": ("gpt2", {"bos_token_id": 50256, "eos_token_id": 50256}),  # and those of gpt2, of 124 million parameters
    "qwen2.5-0.5b": (
        "qwen2",
        {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-1.5b": (
        "qwen2",
        {
            "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
            "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "t5-large": (
        "t5",
        {
            "d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16, "vocab_size": 32128,
            "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        },
    ),
    "llama-3.2-1b": (
        "llama",
        {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "phi-2": (
        "phi",
        {
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32,
            "vocab_size": 51200, "max_position_embeddings": 2048, "partial_rotary_factor": 0.4, "resid_pdrop": 0.1,
        },
    ),
    "mistral-7b": (  # v0.3: without the sliding window of v0.1
        "mistral",
        {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 32768, "max_position_embeddings": 32768, "sliding_window": None,
        },
    ),
    "qwen2.5-7b": (
        "qwen2",
        {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
        },
    ),
    "llama-3.1-8b": (
        "llama",
        {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
        },
    ),
    "qwen2.5-14b": (
        "qwen2",
        {
            "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8, "vocab_size": 152064, "max_position_embeddings": 131072,
        },
    ),
    "llama-3.1-70b": (
        "llama",
        {
            "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
        },
    ),
}  # fmt: skip


def shipped_config(name: str) -> PretrainedConfig:
    """The config of a shipped architecture."""
    from transformers import AutoConfig

    kind, dimensions = SHIPPED[name]
    config: PretrainedConfig = AutoConfig.for_model(kind, **dimensions)
    return config
