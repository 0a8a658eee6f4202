"""The words of other trainers in those of a search file: optimizers, schedulers, modules, dtypes, formats. Pure."""

from __future__ import annotations

import re
from typing import Any

from lorafront.search.own_recipe_fields import demand, text

# The same arithmetic, in other kernels. transformers' names (`transformers.training_args.OptimizerNames`).
_ADAMW = frozenset({"adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_torch_xla", "adamw_apex_fused", "adamw"})
_IN_8_BIT = "paged_adamw_8bit"
_NEARLY = {
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "adamw_torch_8bit"), "paged_adamw_8bit"),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw"), "adamw"),
}
_SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
DTYPES = {
    **dict.fromkeys(("bfloat16", "bf16", "torch.bfloat16"), "bf16"),
    **dict.fromkeys(("float16", "fp16", "half", "torch.float16"), "fp16"),
    **dict.fromkeys(("float32", "fp32", "float", "torch.float32"), "fp32"),
}
TASKS = {"CAUSAL_LM": "causal_lm", "SEQ_CLS": "seq_cls", "SEQ_2_SEQ_LM": "seq_2_seq_lm"}
EVERY_LINEAR = frozenset({"all", "all-linear", "all_linear"})
# The names that Llama gave its projections and most models since use, and what they are.
_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
_MLP = frozenset({"gate_proj", "up_proj", "down_proj"})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def optimizer(name: str) -> tuple[str, str]:
    """Ours, and what to say of it."""
    if name in _ADAMW:
        return "adamw", ""
    if name == _IN_8_BIT:
        return name, ""
    if name in _NEARLY:
        return _NEARLY[name], f"read as {_NEARLY[name]}"
    return "adamw", "there is adamw and paged_adamw_8bit; read as adamw"


def scheduler(name: str) -> tuple[str, str]:
    """Ours, and what to say of it."""
    if name in _SCHEDULERS:
        return _SCHEDULERS[name], ""
    near = "cosine" if name.startswith("cosine") else "linear"
    return near, f"there is linear, cosine and constant; read as {near}"


def module_names(value: Any) -> list[str]:
    """Names of modules, as a list, as one name, or as text with commas.

    Raises:
        ValueError: it is a pattern or something else that is no list of names.
    """
    names = value.split(",") if isinstance(value, str) else value
    names = [text(name).strip() for name in names] if isinstance(names, list) else []
    demand(
        names and all(map(_NAME.fullmatch, names)),
        "must be names of modules: a pattern has no counterpart, put the names that it means in a list",
    )
    return names


def module_set(names: list[str]) -> str:
    """A module set of a space: groups where the names are those of Llama's projections, else the names themselves.

    Groups mean the same modules as the names wherever a model has those names, and are one choice with the default
    space's own.
    """
    if any(name in EVERY_LINEAR for name in names):
        return "+".join(["all-linear", *(name for name in names if name not in EVERY_LINEAR)])
    chosen = set(names)
    if not chosen <= _MLP | set(_ATTENTION) or (chosen & _MLP and not chosen >= _MLP):
        return "+".join(dict.fromkeys(names))
    roles = [role for name, role in _ATTENTION.items() if name in chosen]
    groups = ["attention"] if len(roles) == len(_ATTENTION) else roles
    return "+".join([*groups, *(["mlp"] if chosen & _MLP else [])])
