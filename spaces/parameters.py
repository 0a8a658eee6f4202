"""A search parameter is a fixed value, a list of choices, or a range; this file says how each is read and asked.

In YAML: `16`, `[8, 16, 32]`, `{low: 1e-5, high: 1e-3, log: true}`. In Python a parameter is the plain value, a list, or
`Range`; no wrapper objects. Sampling goes through `suggest_*` of whatever is passed in (Optuna's trial, or a test's).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Generic, Protocol, Self, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

T = TypeVar("T")
ROUNDING = 1e-9  # 0.3 - 0.1 is below 0.2 in floats
DIGITS = 12  # of a value that steps reach
MAX_CHOICES = 1000  # a longer list is a mistake, and a burden for whoever stores it
FORMS = frozenset({"fixed", "choices", "range"})  # pydantic puts these tags into an error's location


class Suggests(Protocol):
    """The part of an Optuna trial that a space needs."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """An integer from low to high."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number from low to high."""


class Range(BaseModel, Generic[T]):
    """All numbers from `low` to `high`, both included.

    `log` draws uniformly in the logarithm; `step` keeps to `low + k * step`. Not both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: T = Field(description="the least value")
    high: T = Field(description="the greatest value, included")
    log: Annotated[bool, Strict()] = Field(default=False, description="draw uniformly in the logarithm")
    step: T | None = Field(default=None, description="only low, low + step, low + 2 step, …")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high, step = self._numbers()
        facts = {"low": low, "high": high, "step": step}
        if low >= high:
            raise PydanticCustomError("rule", "low ({low}) must be below high ({high})", facts)
        if self.log and low <= 0:
            raise PydanticCustomError("rule", "a log range must start above 0 (low is {low})", facts)
        if step is not None and self.log:
            raise PydanticCustomError("rule", "give log or step, not both", facts)
        if step is not None and not 0 < step <= (high - low) * (1 + ROUNDING):
            raise PydanticCustomError("rule", "step must be above 0 and at most high - low (got {step})", facts)
        return self

    def _numbers(self) -> tuple[Any, Any, Any]:
        return self.low, self.high, self.step

    def suggest(self, name: str, trial: Suggests) -> int | float:
        """Draw one number under `name`."""
        low, high, step = self._numbers()
        if step is not None:
            high = stepped(low, (self.count() or 1) - 1, step)  # the last one that steps reach
        if isinstance(low, int):
            return trial.suggest_int(name, low, high, step=step or 1, log=self.log)
        return trial.suggest_float(name, low, high, step=step, log=self.log)

    def count(self) -> int | None:
        """How many values there are; None where the range is continuous."""
        low, high, step = self._numbers()
        if isinstance(low, int):
            return int((high - low) // (step or 1)) + 1
        return None if step is None else math.floor((high - low) / step + ROUNDING) + 1

    def __str__(self) -> str:
        low, high, step = self._numbers()
        return f"{low:g} to {high:g}" + (" (log)" if self.log else f" step {step:g}" if step is not None else "")


def stepped(low: T, index: int, step: T) -> T:
    """`low + index * step` without the dust of adding up: the third step of 0.1 is 0.3, which a limit of 0.3 allows."""
    value: Any = low + index * step  # type: ignore[operator]  # numbers
    return value if isinstance(value, int) else round(value, DIGITS)  # type: ignore[return-value]


def _form(raw: object) -> str:
    if isinstance(raw, (Range, dict)):
        return "range"
    return "choices" if isinstance(raw, (list, tuple)) else "fixed"


def _distinct(values: list[T]) -> list[T]:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise PydanticCustomError("rule", "each choice once; repeated: {names}", {"names": ", ".join(repeated)})
    return values


def _whole(raw: object) -> object:
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise PydanticCustomError("rule", "must be an integer (got {value})", {"value": repr(raw)})
    return raw


def real(raw: object) -> float:
    """A finite number; for validators."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise PydanticCustomError("rule", "must be a number (got {value})", {"value": repr(raw)})
    try:
        number = float(raw)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise PydanticCustomError("rule", "must be finite (got {value})", {"value": repr(raw)[:40]})
    return number + 0.0  # -0.0 becomes 0.0


Whole = Annotated[int, BeforeValidator(_whole)]  # True, "8", 2.0 are not integers
Real = Annotated[float, BeforeValidator(real)]  # an integer will do; NaN and infinity will not


def _tag(form: str, kind: Any) -> Any:
    return Annotated[kind, Tag(form)]


def _choices(item: Any) -> Any:
    return Annotated[list[item], Field(min_length=1, max_length=MAX_CHOICES), AfterValidator(_distinct)]


if TYPE_CHECKING:
    NumberParameter: TypeAlias = T | list[T] | Range[T]
    NameParameter: TypeAlias = T | list[T]
else:  # a subscripted alias would hand Range its own type variable instead of the bounds

    class NumberParameter:
        """`NumberParameter[Item]`: an item, a list of items, or a range between items."""

        def __class_getitem__(cls, item: Any) -> Any:
            forms = _tag("fixed", item) | _tag("choices", _choices(item)) | _tag("range", Range[item])
            return Annotated[forms, Discriminator(_form)]

    class NameParameter:
        """`NameParameter[Item]`: an item or a list of items."""

        def __class_getitem__(cls, item: Any) -> Any:
            forms = _tag("fixed", item) | _tag("choices", _choices(item))
            return Annotated[forms, Discriminator(lambda raw: "choices" if isinstance(raw, (list, tuple)) else "fixed")]


def ask(parameter: Any, name: str, trial: Suggests) -> Any:
    """One value of `parameter`. A fixed value and a single choice are not asked: a sampler would model a constant."""
    if isinstance(parameter, Range):
        return parameter.suggest(name, trial)
    if isinstance(parameter, list):
        return parameter[0] if len(parameter) == 1 else trial.suggest_categorical(name, parameter)
    return parameter


def count(parameter: Any) -> int | None:
    """How many values `parameter` can take; None where it is continuous."""
    if isinstance(parameter, Range):
        return parameter.count()
    return len(parameter) if isinstance(parameter, list) else 1


def values_of(parameter: Any) -> list[Any]:
    """The values that can be listed: a range gives its two ends."""
    if isinstance(parameter, Range):
        return [parameter.low, parameter.high]
    return list(parameter) if isinstance(parameter, list) else [parameter]


def describe(parameter: Any) -> str:
    """One line for people."""
    return ", ".join(str(value) for value in parameter) if isinstance(parameter, list) else str(parameter)
