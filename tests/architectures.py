"""Small models of the families that people fine-tune, built from transformers' own configs with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from lorafront.trainables.config import ModelConfig
from lorafront.trainables.task import task_named

VOCABULARY = 2048
_WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
_GROUPED = {**_WIDE, "num_key_value_heads": 1}
_ENCODER = {**_WIDE, "max_position_embeddings": 80}
# Family to (task, the model type of transformers, what makes it small).
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("causal_lm", "llama", _WIDE),
    "mistral": ("causal_lm", "mistral", _GROUPED),
    "qwen2": ("causal_lm", "qwen2", _GROUPED),
    "qwen3": ("causal_lm", "qwen3", {**_GROUPED, "head_dim": 32}),
    "phi-2": ("causal_lm", "phi", _WIDE),
    "phi-3": ("causal_lm", "phi3", {**_WIDE, "num_key_value_heads": 2, "pad_token_id": 0}),
    "gpt-2": ("causal_lm", "gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 80}),
    "gpt-neox": ("causal_lm", "gpt_neox", _WIDE),
    "falcon": ("causal_lm", "falcon", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}),
    "gemma": ("causal_lm", "gemma", {**_GROUPED, "head_dim": 32}),
    "bert": ("seq_cls", "bert", _ENCODER),
    "distilbert": (
        "seq_cls",
        "distilbert",
        {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 80},
    ),
    "roberta": ("seq_cls", "roberta", _ENCODER),
    "t5": (
        "seq_2_seq_lm",
        "t5",
        {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "flan-t5": (
        "seq_2_seq_lm",
        "t5",
        {
            "d_model": 64,
            "d_kv": 32,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "gpt-2 classifier": (
        "seq_cls",
        "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 80, "pad_token_id": 1},
    ),
    "llama classifier": ("seq_cls", "llama", {**_WIDE, "pad_token_id": 1}),
}


def small_config(family: str) -> PretrainedConfig:
    """The family's config."""
    _, kind, sizes = FAMILIES[family]
    return AutoConfig.for_model(kind, vocab_size=VOCABULARY, **sizes)


def build(family: str, folder: Path) -> ModelConfig:
    """Write a model with seeded random weights; of a classifier only the body, as a pretrained encoder comes."""
    from transformers import AutoModel

    task = task_named(FAMILIES[family][0])
    torch.manual_seed(0)
    auto_class = AutoModel if task.new_head else task.auto_class()
    auto_class.from_config(small_config(family)).save_pretrained(folder)
    return ModelConfig(name=str(folder))
