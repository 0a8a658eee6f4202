"""Which start points a search has: the user's recipe, as many shipped ones as its budget bears, the user's own. Pure.

The list is made once, when a search begins, and kept in its study; a driver that goes on reads it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorafront.spaces.errors import Problem
from lorafront.spaces.lora import LoraConfiguration, LoraSpace, resolve
from lorafront.spaces.presets import PRESETS
from lorafront.spaces.start_points import Overlap, Placed, StartPoint, StartPoints, place

SHARE_OF_BUDGET = 4  # shipped points get at most a quarter of the trials
BASELINE = "baseline"  # label of the user's recipe, which the front is compared with


@dataclass(frozen=True)
class Start:
    """One configuration to try before the sampler is asked.

    Attributes:
        label: which point it is, for people.
        params: under the sampler's names, inside the space.
        own: the user asked for it.
        fingerprint: of the configuration that it trains on this model; empty where an earlier version wrote it.
    """

    label: str
    params: dict[str, Any]
    own: bool
    fingerprint: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the study."""
        return {"label": self.label, "params": self.params, "own": self.own, "fingerprint": self.fingerprint}


@dataclass(frozen=True)
class Starts:
    """What is tried first, and what is said about it."""

    points: tuple[Start, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What a point is placed into.

    Attributes:
        space: as it is on this model.
        defaults: of `training`.
        overlap: how much two module sets have in common on this model.
        canonical: the simplest configuration that trains the same.
        breaks: the limit that a configuration is known to break; empty where it breaks none.
        too_large: why no device can train a configuration; empty where one can.
    """

    space: LoraSpace
    defaults: Mapping[str, Any]
    overlap: Overlap
    canonical: Callable[[LoraConfiguration], LoraConfiguration]
    breaks: Callable[[LoraConfiguration], str]
    too_large: Callable[[LoraConfiguration], str] = lambda _: ""

    def configuration(self, placed: Placed) -> LoraConfiguration:
        """What a placed point trains."""
        return self.canonical(resolve(placed.values, self.defaults))


def starts(chosen: StartPoints, around: Surroundings, trials: int, baseline: StartPoint | None = None) -> Starts:
    """The start points of a search, each configuration once: the baseline, shipped ones, the user's own.

    Args:
        chosen: the section of the search file; its own points lie inside the space.
        around: where they go.
        trials: the budget.
        baseline: the user's recipe, inside the space; none is none.
    """
    recipe, problems, said = _baseline(baseline, around)
    others, more = _own(chosen, around)
    own = {**recipe, **{key: start for key, start in others.items() if key not in recipe}}
    room = _room(trials, len(own)) if chosen.recommended else 0
    shipped, notes = _shipped(around, room, taken=set(own))
    if len(own) > trials:
        notes.append(f"{len(own)} start points of your own are more than the budget of {trials} trials: the last wait")
    return Starts(tuple({**recipe, **shipped, **own}.values()), (*said, *notes), (*problems, *more))


def _baseline(point: StartPoint | None, around: Surroundings) -> tuple[dict[str, Start], list[Problem], list[str]]:
    """By fingerprint. It may break a limit, which says how much the limit costs; only memory refuses it."""
    placed = _placed(point, around) if point is not None else None
    if placed is None:
        return {}, [], []
    lora = around.configuration(placed)
    if reason := around.too_large(lora):
        return {}, [Problem((BASELINE,), f"is in vain: {reason}")], []
    broken = around.breaks(lora)
    notes = [f"the baseline is on no front: {broken}; it runs all the same"] if broken else []
    return {lora.fingerprint: Start(BASELINE, placed.values, own=True, fingerprint=lora.fingerprint)}, [], notes


def _placed(point: StartPoint, around: Surroundings) -> Placed | None:
    """One of the user's own, whose values the space has; where it says no modules, any will do."""
    return place(point, around.space, around.defaults, around.overlap) or place(
        point, around.space, around.defaults, _any_will_do
    )


def _own(chosen: StartPoints, around: Surroundings) -> tuple[dict[str, Start], list[Problem]]:
    """By fingerprint, and those that break a limit."""
    found: dict[str, Start] = {}
    problems = []
    for index, point in enumerate(chosen.points):
        placed = _placed(point, around)
        if placed is None:
            continue
        lora = around.configuration(placed)
        if broken := around.breaks(lora):
            problems.append(Problem(("start_points", index), f"is in vain: {broken}"))
        start = Start(f"start_points[{index}]", placed.values, own=True, fingerprint=lora.fingerprint)
        found.setdefault(lora.fingerprint, start)
    return found, problems


def _shipped(around: Surroundings, room: int, taken: set[str]) -> tuple[dict[str, Start], list[str]]:
    """As many as there is room for, by fingerprint, and what became of them."""
    found: dict[str, Start] = {}
    notes: list[str] = []
    for preset in PRESETS:
        if len(found) == room:
            break
        placed = place(StartPoint.model_validate(preset.point), around.space, around.defaults, around.overlap)
        if placed is None:
            notes.append(f"start point {preset.name} is left out: the space has nothing like {preset.point['modules']}")
            continue
        lora = around.configuration(placed)
        if broken := around.breaks(lora):
            notes.append(f"start point {preset.name} is left out: {broken}")
        elif lora.fingerprint not in taken | set(found):
            found[lora.fingerprint] = Start(preset.name, placed.values, own=False, fingerprint=lora.fingerprint)
            if placed.moved:
                notes.append(f"start point {preset.name} is moved into the space: {', '.join(placed.moved.values())}")
    return found, notes


def _any_will_do(_wanted: str, _choice: str) -> float:
    return 1.0


def _room(trials: int, own: int) -> int:
    """How many shipped points a budget bears: a quarter, at least one, and never in place of the user's own."""
    return min(max(1, trials // SHARE_OF_BUDGET), max(0, trials - own))
