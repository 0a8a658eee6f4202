"""A space of its own for a recipe: a given one, with the recipe's values in it. Pure; plain data as a file says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def widened(space: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """The space with every value of a point.

    Args:
        space: lists of choices and ranges; alpha as a ratio.
        point: one value of each of its parameters, alpha as a number.
    """
    values = {**point, "alpha": point["alpha"] / point["rank"]}
    found = {}
    for name, parameter in space.items():
        if name == "alpha":
            found[name] = {"ratio": _with(parameter["ratio"], values[name])}
        else:
            found[name] = _with(parameter, values[name])
    return found


def _with(parameter: Any, value: Any) -> Any:
    if isinstance(parameter, dict):
        return {**parameter, "low": min(parameter["low"], value), "high": max(parameter["high"], value)}
    if value in parameter:
        return list(parameter)
    return sorted([*parameter, value]) if isinstance(value, (int, float)) else [*parameter, value]
