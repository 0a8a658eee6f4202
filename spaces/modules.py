"""Module groups (`query+value`, `attention`, `attention+mlp`, `all-linear`) resolved to a model's own linear modules.

Pure: works on the list of a model's linear module names (`trainables.model_facts` supplies it). PEFT skips
names that a model does not have; here whatever matches nothing is a `ModuleProblem` that lists what there is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorafront.spaces.errors import LorafrontError, did_you_mean

QUERY, KEY, VALUE, OUTPUT = "query", "key", "value", "output"
GATE, UP, DOWN = "gate", "up", "down"
GROUPS: dict[str, frozenset[str]] = {
    "query": frozenset({QUERY}),
    "key": frozenset({KEY}),
    "value": frozenset({VALUE}),
    "output": frozenset({OUTPUT}),
    "attention": frozenset({QUERY, KEY, VALUE, OUTPUT}),
    "mlp": frozenset({GATE, UP, DOWN}),
}
EVERYTHING = "all-linear"

_ATTENTION = re.compile(r"(^|[._])(self_?attn|attn|(self|cross|enc_?dec)?_?attention)([._]|$)", re.IGNORECASE)
# What a linear's last name means: inside an attention block, and outside of one. Collected from transformers' own
# modelling files; a fused projection carries several roles.
_IN_ATTENTION: dict[str, frozenset[str]] = {
    **dict.fromkeys(("q_proj", "query", "q_lin", "q", "wq", "query_proj", "q_a_proj", "q_b_proj"), frozenset({QUERY})),
    **dict.fromkeys(("k_proj", "key", "k_lin", "k", "wk", "key_proj"), frozenset({KEY})),
    **dict.fromkeys(("v_proj", "value", "v_lin", "v", "wv", "value_proj"), frozenset({VALUE})),
    **dict.fromkeys(("o_proj", "dense", "out_lin", "o", "out_proj", "wo", "c_proj"), frozenset({OUTPUT})),
    **dict.fromkeys(("qkv_proj", "c_attn", "query_key_value", "wqkv", "in_proj"), frozenset({QUERY, KEY, VALUE})),
}
_OUTSIDE: dict[str, frozenset[str]] = {
    **dict.fromkeys(("gate_proj", "wi_0"), frozenset({GATE})),
    **dict.fromkeys(
        ("up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h", "lin1", "wi", "wi_1", "intermediate.dense"),
        frozenset({UP}),
    ),
    **dict.fromkeys(
        ("down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "lin2", "wo", "output.dense"), frozenset({DOWN})
    ),
    "gate_up_proj": frozenset({GATE, UP}),
}
_HEADS = (
    "lm_head",
    "vocab_transform",
    "vocab_projector",
    "embed_out",
    "classifier",
    "score",
    "pre_classifier",
    "pooler.dense",
    "cls.predictions",
)


@dataclass(frozen=True)
class Resolved:
    """What a module set means on one model.

    Attributes:
        names: full names of the linear modules that get an adapter.
        targets: shortest `target_modules` for PEFT that match exactly `names`.
    """

    names: tuple[str, ...]
    targets: tuple[str, ...]


class ModuleProblem(LorafrontError, ValueError):
    """A group or name that this model cannot satisfy."""

    exit_code = 2


def roles(name: str) -> frozenset[str]:
    """Roles of one linear module by its full name; empty where it has none that we know (`lm_head`)."""
    if is_head(name):
        return frozenset()
    parts = name.split(".")
    last, last_two = parts[-1].lower(), ".".join(parts[-2:]).lower()
    if _ATTENTION.search(".".join(parts[:-1])):
        return _IN_ATTENTION.get(last, frozenset())
    # T5 keeps q, k, v under SelfAttention and its feed-forward under DenseReluDense, so the path decides first.
    return _OUTSIDE.get(last_two) or _OUTSIDE.get(last, frozenset())


def in_order(parts: Sequence[str]) -> list[str]:
    """The parts of a module set in one order, each once: groups as in `GROUPS`, then names as they were written."""
    order = [*GROUPS, EVERYTHING]
    return sorted(dict.fromkeys(parts), key=lambda part: order.index(part) if part in order else len(order))


def is_head(name: str) -> bool:
    """True for output heads, which LoRA leaves alone unless they are named."""
    return any(name == head or name.endswith(f".{head}") or name.startswith(f"{head}.") for head in _HEADS)


def resolve(module_set: str, linears: Sequence[str]) -> Resolved:
    """Resolve `a+b+c` (groups or explicit names) against the names of a model's linear modules.

    Raises:
        ModuleProblem: a part matches nothing, or asks for a share of a fused projection.
    """
    parts = module_set.split("+")
    wanted = frozenset[str]().union(*(GROUPS.get(part, frozenset()) for part in parts))
    chosen = {name for name in linears if roles(name) & wanted}
    _refuse_split(wanted, chosen)
    for part in parts:
        if part in GROUPS:
            missing = not any(roles(name) & GROUPS[part] for name in chosen)
            found = chosen
        else:
            found = _named(part, linears)
            missing = not found
        if missing:
            raise ModuleProblem(_nothing(part, linears))
        chosen |= found
    names = tuple(name for name in linears if name in chosen)
    return Resolved(names, shortest_targets(names, linears))


def _named(part: str, linears: Sequence[str]) -> set[str]:
    if part == EVERYTHING:
        return {name for name in linears if not is_head(name)}
    return {name for name in linears if name == part or name.endswith(f".{part}")}


def _refuse_split(wanted: frozenset[str], chosen: set[str]) -> None:
    for name in sorted(chosen):
        if roles(name) - wanted:
            own = "+".join(role for role in (QUERY, KEY, VALUE, GATE, UP) if role in roles(name))
            raise ModuleProblem(
                f"this model fuses {own.replace('+', ', ')} into {name.rsplit('.', 1)[-1]}, so a part of it cannot be "
                f"adapted alone; use {own}, attention or mlp as a whole"
            )


def _nothing(part: str, linears: Sequence[str]) -> str:
    have = leaf_names(linears)
    groups = [g for g, members in GROUPS.items() if any(roles(name) & members for name in linears)]
    hint = did_you_mean(part, [*GROUPS, EVERYTHING, *have])
    return (
        f"{part!r} matches no linear module of this model.{hint} It has {', '.join(have)}; "
        f"groups: {', '.join([*groups, EVERYTHING])}"
    )


def leaf_names(linears: Sequence[str]) -> list[str]:
    """Distinct last names, in the model's order."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linears))


def shortest_targets(chosen: Sequence[str], linears: Sequence[str]) -> tuple[str, ...]:
    """The shortest dotted suffixes that match every chosen name and no other one.

    PEFT matches an entry of `target_modules` when a module's name equals it or ends with a dot and it.

    Raises:
        ModuleProblem: a name is the end of another one, so no entry matches it alone.
    """
    others = [name for name in linears if name not in set(chosen)]
    targets: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            suffix = ".".join(parts[-length:])
            if not any(other == suffix or other.endswith(f".{suffix}") for other in others):
                targets[suffix] = None
                break
        else:
            raise ModuleProblem(f"PEFT cannot adapt {name} alone: other modules end with the same name")
    return tuple(targets)
