"""The configurations of a space, and how many break a limit or do not fit, as far as is known before. Pure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorafront.spaces.lora import LoraConfiguration, LoraSpace, resolve
from lorafront.spaces.parameters import Range, count
from lorafront.spaces.uniform_draw import UniformDraw

MOST_LISTED = 20_000  # a larger space is drawn from, as often


@dataclass(frozen=True)
class Breaking:
    """How many of the discrete configurations break a limit.

    Attributes:
        broken: of `total`.
        total: different configurations that were looked at.
        example: a limit that is broken, with the value; empty where none is.
        all_listed: False where the space is so large that only some were drawn.
    """

    broken: int
    total: int
    example: str
    all_listed: bool

    def __str__(self) -> str:
        if self.all_listed:
            return f"not proposed: {self.broken:,} of {self.total:,} discrete configurations, over a limit or too large"
        return f"not proposed: about {self.broken / self.total:.0%} of the space, over a limit or too large"


def breaking(
    space: LoraSpace,
    defaults: Mapping[str, Any],
    canonical: Callable[[LoraConfiguration], LoraConfiguration],
    breaks: Callable[[LoraConfiguration], str],
) -> Breaking:
    """Count the configurations that break a limit.

    Args:
        space: the space.
        defaults: of `training`.
        canonical: the simplest configuration that trains the same.
        breaks: the limit that a configuration is known to break; empty where it breaks none.
    """
    found = configurations(space, defaults, canonical)
    broken = [reason for lora in found if (reason := breaks(lora))]
    return Breaking(len(broken), len(found), broken[0] if broken else "", listed(space))


def listed(space: LoraSpace) -> bool:
    """Whether all discrete configurations are looked at; of a larger space some are drawn."""
    return space.size()[0] <= MOST_LISTED


def configurations(
    space: LoraSpace, defaults: Mapping[str, Any], canonical: Callable[[LoraConfiguration], LoraConfiguration]
) -> list[LoraConfiguration]:
    """Each different configuration once; continuous parameters stand at their upper end.

    Not at the lower one: dropout from 0 up is almost never 0, and needs memory for its masks.
    """
    points = _all(space, defaults) if listed(space) else _some(space, defaults)
    return list({lora.fingerprint: lora for lora in map(canonical, points)}.values())


def _all(space: LoraSpace, defaults: Mapping[str, Any]) -> Iterator[LoraConfiguration]:
    parameters = space.parameters()
    for values in itertools.product(*(_listed(parameter) for parameter in parameters.values())):
        yield resolve(dict(zip(parameters, values, strict=True)), defaults)


def _some(space: LoraSpace, defaults: Mapping[str, Any]) -> Iterator[LoraConfiguration]:
    generator = random.Random(0)  # noqa: S311  # an estimate, no secret
    for _ in range(MOST_LISTED):
        yield space.ask(UniformDraw(generator), defaults)


def _listed(parameter: Any) -> list[Any]:
    if not isinstance(parameter, Range):
        return parameter if isinstance(parameter, list) else [parameter]
    number = count(parameter)
    if number is None:
        return [parameter.high]
    step = parameter.step or 1
    return [parameter.low + index * step for index in range(number)]
