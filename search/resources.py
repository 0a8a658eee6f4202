"""Section `resources` of a search file: what one trial gets, and how many train at once."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from lorafront.spaces.lora import Count
from lorafront.spaces.parameters import Real, real
from lorafront.spaces.sizes import parse_size
from lorafront.trainables.config import Section


def _share(raw: object) -> object:
    if raw is None or raw == "auto":  # studies of the first days say nothing
        return "auto"
    value = real(raw)
    entire = value >= 1 and value == int(value)
    if not entire and not (0 < value < 1 and value * 16 == int(value * 16)):
        raise PydanticCustomError(
            "rule",
            "must be a whole number of GPUs, or sixteenths of one such as 0.25, 0.125, 0.0625 (got {value})",
            {"value": value},
        )
    return value


def _slots(raw: object) -> object:
    if raw is None or raw == "auto":
        return "auto"
    if isinstance(raw, bool) or not isinstance(raw, int) or raw < 1:
        message = "must be auto, or a whole number of trials from 1 on (got {value})"
        raise PydanticCustomError("rule", message, {"value": repr(raw)})
    return raw


def _size(text: object) -> object:
    try:
        parse_size(text)
    except ValueError as error:
        raise PydanticCustomError("rule", "{reason}", {"reason": str(error)}) from error
    return str(text)


class Resources(Section):
    """What one trial gets, and how many run at once."""

    gpus_per_trial: Annotated[float | Literal["auto"], BeforeValidator(_share)] = Field(
        default="auto", description="GPUs, or sixteenths of one; auto is what each trial's predicted memory needs"
    )
    memory_per_worker: Annotated[str, BeforeValidator(_size)] | None = Field(
        default=None, description="memory of each worker where there is no GPU, such as 4GB; none is the machine's"
    )
    cpus_per_trial: Count = Field(default=1, description="CPU cores, which is also its threads")
    max_concurrent: Count | None = Field(
        default=None, description="workers at once at most, each with a trial or a pack of them; none is what fits"
    )
    slots: Annotated[int | Literal["auto"], BeforeValidator(_slots)] = Field(
        default="auto",
        description="packed trials in training at once, over all workers; auto is as many as a pass is worth, at most "
        "a quarter of the budget",
    )
    hang_minutes: Annotated[Real, Gt(0)] = Field(
        default=30,
        description="a worker without an optimizer step or evaluation batch for so long is ended, its trial run again",
    )
