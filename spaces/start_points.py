"""Start points: configurations that are tried first, moved into the space where they lie outside of it. Pure.

A point says some parameters in the words of a space (`alpha: 32` or `alpha: {ratio: 2}`); what it leaves out comes from
the recommended default, at the nearest value that the space has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from lorafront.spaces import modules, presets
from lorafront.spaces.lora import Bias, Count, LoraSpace, ModuleSet, NotNegative, Positive, Scheduler, Share
from lorafront.spaces.parameters import ROUNDING, Range, describe
from lorafront.spaces.quantization import Quantization

Overlap = Callable[[str, str], float]  # (module set that is wanted, one of the space's) to a share from 0 to 1
MAX_POINTS = 1000
# Bits that a weight takes, so that a base that is not in the space is replaced by the one nearest in memory.
BITS = {"nf4_double": 4.13, "nf4": 4.5, "fp4": 4.5, "int8": 8.0, "bf16": 16.0, "fp16": 16.0, "fp32": 32.0}
BIASES = ("none", "lora_only", "all")
IN_RATIOS = frozenset({"rank", "alpha", "alpha_ratio", "learning_rate", "batch_size", "gradient_accumulation"})


class PointAlpha(BaseModel):
    """alpha of one point: a number, or a multiple of its rank."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: Positive | None = Field(default=None, description="alpha / rank")
    absolute: Positive | None = Field(default=None, description="alpha")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.ratio is None) == (self.absolute is None):
            raise PydanticCustomError("rule", "give ratio or absolute, one of the two")
        return self


def _alpha(raw: object) -> object:
    return {"absolute": raw} if isinstance(raw, (int, float)) else raw


class StartPoint(BaseModel):
    """A configuration to try first; each key is one value of the space's parameter of that name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: Count | None = None
    alpha: Annotated[PointAlpha | None, BeforeValidator(_alpha)] = None
    modules: ModuleSet | None = None
    quantization: Quantization | None = None
    dropout: Share | None = None
    bias: Bias | None = None
    learning_rate: Positive | None = None
    batch_size: Count | None = None
    gradient_accumulation: Count | None = None
    weight_decay: NotNegative | None = None
    warmup: Share | None = None
    scheduler: Scheduler | None = None

    def said(self) -> dict[str, Any]:
        """What it says, by key."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class StartPoints(BaseModel):
    """What is tried before the sampler is asked. A plain list is short for `{points: list}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recommended: Annotated[bool, Strict()] = Field(
        default=True, description="begin with the configurations that guides recommend (spaces/presets.py)"
    )
    points: Annotated[list[StartPoint], Field(max_length=MAX_POINTS)] = Field(
        default_factory=list, description="your own; they always run"
    )


@dataclass(frozen=True)
class Placed:
    """A point inside a space.

    Attributes:
        values: of every parameter of the space, under the sampler's names.
        moved: `rank 256 to 64`, for every value that was said and lies elsewhere now; empty for a point of the space.
    """

    values: dict[str, Any]
    moved: dict[str, str]


def place(point: StartPoint, space: LoraSpace, defaults: Mapping[str, Any], overlap: Overlap) -> Placed | None:
    """The point of the space that is nearest to `point`.

    Args:
        point: what is wanted.
        space: where it has to lie.
        defaults: of `training`, for the parameters that only belong to the space if it names them.
        overlap: how much two module sets have in common; the space's own words are enough for `overlap_of_groups`.

    Returns:
        None where no module set of the space has anything in common with the one that is wanted.
    """
    said = point.said()
    wanted = {**defaults, **DEFAULT_POINT.said(), **said}
    values: dict[str, Any] = {}
    moved: dict[str, str] = {}
    for name, parameter in space.parameters().items():  # rank comes before alpha
        key = "alpha" if name == "alpha_ratio" else name
        target = _wanted_alpha(wanted["alpha"], name, values["rank"]) if key == "alpha" else wanted[key]
        found = _most_alike(parameter, str(target), overlap) if name == "modules" else nearest(parameter, target, name)
        if found is None:
            return None
        values[name] = found
        if key in said and not _same(found, target):
            moved[key] = f"{_called(name)} {_shown(target)} to {_shown(found)}"
    return Placed(values, moved)


def outside(point: StartPoint, space: LoraSpace, defaults: Mapping[str, Any]) -> dict[str, str]:
    """Keys whose value the space does not have, each with what it has.

    A key that the space leaves to `training` may only repeat what stands there.
    """
    problems: dict[str, str] = {}
    parameters = space.parameters()
    said = point.said()
    rank = said.get("rank", nearest(space.rank, DEFAULT_POINT.rank, "rank"))
    for key, value in said.items():
        name = "alpha_ratio" if key == "alpha" and "alpha_ratio" in parameters else key
        target = _wanted_alpha(value, name, rank) if key == "alpha" else value
        parameter = parameters.get(name, defaults.get(name))
        if not contains(parameter, target):
            where = "space" if name in parameters else "training"
            problems[key] = (
                f"{_called(name)} {_shown(target)} is not in the space, which has {describe(parameter)} "
                f"({where}.{key}); a start point lies inside it"
            )
    return problems


def contains(parameter: Any, value: Any) -> bool:
    """True where a fixed value, a list of choices or a range has the value."""
    if isinstance(parameter, Range):
        return _same(nearest(parameter, value, ""), value)
    return any(_same(choice, value) for choice in (parameter if isinstance(parameter, list) else [parameter]))


def nearest(parameter: Any, value: Any, name: str) -> Any:
    """The value of `parameter` that is nearest; of two that are equally near, the smaller or the first one."""
    if isinstance(parameter, Range):
        return _in_range(parameter, value)
    choices = parameter if isinstance(parameter, list) else [parameter]
    if name in IN_RATIOS:
        return min(choices, key=lambda choice: (abs(math.log(choice / value)), choice))
    if name == "quantization":
        return min(choices, key=lambda choice: (choice != value, abs(math.log(BITS[choice] / BITS[value]))))
    if name == "bias":
        return min(choices, key=lambda choice: abs(BIASES.index(choice) - BIASES.index(value)))
    if isinstance(value, (int, float)):
        return min(choices, key=lambda choice: (abs(choice - value), choice))
    return value if value in choices else choices[0]


def _in_range(parameter: Range[Any], value: float) -> Any:
    low, high, step = parameter.low, parameter.high, parameter.step
    whole = isinstance(low, int)
    if step is not None or whole:
        stride = step or 1
        last = (parameter.count() or 1) - 1
        steps = min(last, max(0, math.ceil((value - low) / stride - 0.5 - ROUNDING)))
        return low + steps * stride
    return min(high, max(low, float(value)))


def _most_alike(parameter: Any, wanted: str, overlap: Overlap) -> str | None:
    choices = parameter if isinstance(parameter, list) else [parameter]
    if wanted in choices:
        return wanted
    best = max(choices, key=lambda choice: overlap(wanted, choice))
    return best if overlap(wanted, best) > 0 else None


def overlap_of_groups(wanted: str, choice: str) -> float:
    """What two module sets share of what they hold together, by their words alone."""
    return shared(_roles(wanted), _roles(choice))


def overlap_on(linears: Sequence[str], resolved: Mapping[str, modules.Resolved]) -> Overlap:
    """The same on a model whose linear modules have these names; `resolved` holds the space's module sets."""

    def overlap(wanted: str, choice: str) -> float:
        roles = _roles(wanted)
        everything = modules.EVERYTHING in roles
        chosen = {name for name in linears if (everything and not modules.is_head(name)) or modules.roles(name) & roles}
        return shared(chosen, set(resolved[choice].names))

    return overlap


def shared(one: set[str] | frozenset[str], other: set[str] | frozenset[str]) -> float:
    """Jaccard's index: members of both by members of either."""
    return len(one & other) / len(one | other) if one or other else 0.0


def _roles(module_set: str) -> frozenset[str]:
    parts = module_set.split("+")
    if modules.EVERYTHING in parts:
        return frozenset({modules.EVERYTHING}).union(*modules.GROUPS.values())
    return frozenset[str]().union(*(modules.GROUPS.get(part, frozenset({part})) for part in parts))


def _wanted_alpha(alpha: PointAlpha, name: str, rank: int) -> float:
    """As the space counts it: a multiple of the rank, or a number."""
    ratio = alpha.ratio if alpha.ratio is not None else (alpha.absolute or 0) / rank
    if name == "alpha_ratio":
        return ratio
    return alpha.absolute if alpha.absolute is not None else ratio * rank


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-12)
    return bool(one == other)


def _called(name: str) -> str:
    return {"alpha_ratio": "alpha / rank"}.get(name, name.replace("_", " "))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


DEFAULT_POINT = StartPoint.model_validate(presets.PRESETS[0].point)
