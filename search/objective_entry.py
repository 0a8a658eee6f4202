"""An entry of `objectives` in a search file: a known measurement, the loss on a second set, or the user's function."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from lorafront.spaces.errors import did_you_mean
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.objectives import OBJECTIVES, Direction, Objective, second_set_loss
from lorafront.trainables.config import DataConfig, Section
from lorafront.trainables.session import Measurements
from lorafront.trainables.user_code import is_reference

MEASURED = frozenset({*OBJECTIVES, *Measurements.__annotations__, "eval_loss"})  # names that are taken


def _reference(name: object) -> object:
    if not is_reference(name):
        raise PydanticCustomError("rule", "must be module:function (got {value})", {"value": repr(name)})
    return name


def _name(name: object) -> object:
    if not isinstance(name, str):
        return name  # the field's own type says what is wrong
    taken = name in MEASURED or name in LoraConfiguration.model_fields
    if taken or name.startswith(("base_", "eval_")):
        raise PydanticCustomError(
            "rule",
            "{name} is the name of something that is measured or set already; give the function another one: "
            "{{function: …, name: …}}",
            {"name": repr(name)},
        )
    return name


class FunctionObjective(Section):
    """A measurement of the user's own. In YAML `module:function` is short for one that is minimized."""

    function: Annotated[str, BeforeValidator(_reference)] = Field(
        description="module:function, called with (model, tokenizer) at the end of a trial; gives a number"
    )
    direction: Direction = Field(default="minimize", description="which way is better")
    name: Annotated[str, BeforeValidator(_name), Field(pattern=r"^[A-Za-z_]\w{0,63}$")] = Field(
        default="", description="none is the function's"
    )
    unit: str = Field(default="", description="shown behind its values")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "name" not in raw and is_reference(raw.get("function")):
            return {**raw, "name": raw["function"].split(":")[1]}
        return raw

    @property
    def objective(self) -> Objective:
        """As an axis of the front."""
        return Objective(
            self.name, self.name.replace("_", " "), self.unit, self.direction, f"what {self.function} gives"
        )


def _second_losses(info: ValidationInfo) -> list[str]:
    data = info.data.get("data")
    return [second_set_loss(name).name for name in data.also_evaluate] if isinstance(data, DataConfig) else []


def _known_measurement(name: object, info: ValidationInfo) -> object:
    if not isinstance(name, str):
        raise PydanticCustomError("rule", "must be text (got {value})", {"value": repr(name)})
    if "data" not in info.data or (info.field_name == "constraints" and "objectives" not in info.data):
        return name  # that section is wrong itself, and would have defined names
    chosen = info.data.get("objectives") or []
    own = [entry.name for entry in chosen if isinstance(entry, FunctionObjective)]
    known = [*OBJECTIVES, *_second_losses(info), *own]
    if name not in known:
        raise PydanticCustomError(
            "rule",
            "unknown objective {name}; there is {known}; the loss on a second set (data.also_evaluate) as "
            "eval_NAME_loss; your own as module:function.{hint}",
            {"name": repr(name), "known": ", ".join(known), "hint": did_you_mean(name, known)},
        )
    return name


def _objective(raw: object) -> object:
    return {"function": raw} if is_reference(raw) else raw


Measurement = Annotated[str, BeforeValidator(_known_measurement)]
ObjectiveEntry = Annotated[
    Annotated[Measurement, Tag("objective_name")] | Annotated[FunctionObjective, Tag("objective_function")],
    Discriminator(lambda raw: f"objective_{'function' if isinstance(raw, (dict, FunctionObjective)) else 'name'}"),
    BeforeValidator(_objective),
]
OBJECTIVE_FORMS = frozenset({"objective_name", "objective_function"})
DEFAULT_OBJECTIVES = {"seq_cls": ["accuracy", "peak_vram_gb"]}  # other tasks begin with perplexity
