"""The search file: its schema, its defaults, and messages that name the key, the value found and the fix.

Every section is frozen; all errors of a file are raised together as one InvalidInput.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from lorafront.search.objective_entry import (
    DEFAULT_OBJECTIVES,
    OBJECTIVE_FORMS,
    FunctionObjective,
    Measurement,
    ObjectiveEntry,
)
from lorafront.search.paths import check_name
from lorafront.search.resources import Resources
from lorafront.search.yaml_file import locate, parse_yaml
from lorafront.spaces.errors import InvalidInput, Problem, did_you_mean
from lorafront.spaces.lora import ALPHA_FORMS, AlphaAbsolute, AlphaRatio, LoraSpace
from lorafront.spaces.objectives import OBJECTIVES, Limit, Objective, parse_limit, second_set_loss
from lorafront.spaces.parameters import FORMS, Range, Real, Whole
from lorafront.spaces.start_points import PointAlpha, StartPoint, StartPoints, outside
from lorafront.trainables.config import DataConfig, ModelConfig, SecondSet, Section, TrainingConfig
from lorafront.trainables.task import TASKS
from lorafront.trainables.user_code import is_reference, source_digest

MAX_TRIALS = 100_000
MOST_SEEDS = 99
MAP_KEY = "[key]"  # pydantic puts it behind the key of a mapping that is wrong itself
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|://[^/\s:@]+:[^/\s@]+@|\bgh[opsu]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
)


SamplerName = Literal["mfgp", "tpe", "gp", "nsga2", "random", "grid"]  # search/samplers.py


class Budget(Section):
    """When the search ends: whichever comes first."""

    trials: Annotated[Whole, Ge(1), Le(MAX_TRIALS)] = Field(default=32, description="trials, failed ones included")
    gpu_hours: Annotated[Real, Gt(0)] | None = Field(
        default=None, description="hours of trials, each times its share of a GPU; without a GPU, hours of workers"
    )
    hours: Annotated[Real, Gt(0)] | None = Field(default=None, description="hours that drivers live, all together")


Baseline = Literal["default", "full"]
LONGEST = 64 - len("-confirm")  # of a name, so that the search of its replicates can have it


class FullTuning(Section):
    """What full fine-tuning is tried with, for as long as a comparison lasts."""

    learning_rate: Annotated[Real, Gt(0)] = Field(description="in the middle of those that are tried")
    quantization: Literal["bf16", "fp16", "fp32"] = Field(description="how its weights are stored")


class Confirm(Section):
    """How the front is trained again after the search, with other seeds (search/confirmation.py)."""

    seeds: Annotated[Whole, Ge(2), Le(MOST_SEEDS)] = Field(
        default=3, description="replicates of a configuration at most; the third and further where the front is unsure"
    )
    hours: Annotated[Real, Gt(0)] | None = Field(default=None, description="hours that it may take")
    baselines: list[Baseline] = Field(
        default_factory=list,
        description="default (the configuration that guides recommend), full (full fine-tuning): trained likewise, to "
        "compare the front with",
    )
    full_tuning: FullTuning | None = Field(default=None, description="of the baseline full; what `compare` sets")


class Tracking(Section):
    """Where MLflow is."""

    uri: str | None = Field(default=None, description="MLflow tracking URI; none is a SQLite file under the root")
    required: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="refuse to start while MLflow cannot be reached, instead of writing its runs later"
    )


def _model(raw: object) -> object:
    return {"name": raw} if isinstance(raw, str) else raw


def _name(raw: object) -> object:
    if not isinstance(raw, str):
        raise PydanticCustomError("rule", "must be text (got {value})", {"value": repr(raw)})
    try:
        return check_name(raw)
    except ValueError as error:
        raise PydanticCustomError("rule", "{reason}", {"reason": str(error)}) from error


def _known_task(name: object) -> object:
    if not isinstance(name, str):
        raise PydanticCustomError("rule", "must be text (got {value})", {"value": _short(name)})
    if name not in TASKS and not is_reference(name):
        raise PydanticCustomError(
            "rule",
            "must be one of {known}, or your own as module:name (got {value}).{hint}",
            {"known": ", ".join(TASKS), "value": repr(name), "hint": did_you_mean(name.lower(), TASKS)},
        )
    return name


def _comparison(text: object) -> object:
    try:
        parse_limit("", text)
    except ValueError as error:
        raise PydanticCustomError("rule", "{reason}", {"reason": str(error)}) from error
    return text


Comparison = Annotated[str, BeforeValidator(_comparison)]


def _seeds(raw: object) -> object:
    return {"seeds": raw} if isinstance(raw, int) and not isinstance(raw, bool) else raw


def _points(raw: object) -> object:
    return {"points": raw} if isinstance(raw, list) else raw


class SearchFile(Section):
    """All that a search is. See `lorafront init` for a commented file."""

    name: Annotated[str, BeforeValidator(_name)] = Field(description="of the folder, the study and MLflow's experiment")
    model: Annotated[ModelConfig, BeforeValidator(_model)] = Field(description="the frozen base")
    task: Annotated[str, BeforeValidator(_known_task)] = Field(
        default="causal_lm", description="causal_lm, seq_cls, seq_2_seq_lm, or your own as module:name"
    )
    data: DataConfig = Field(description="what to adapt to")
    space: LoraSpace = Field(default=LoraSpace(), description="what varies")
    objectives: Annotated[list[ObjectiveEntry], Field(min_length=2, max_length=4)] = Field(
        default=["perplexity", "peak_vram_gb"],
        description="axes of the front; of seq_cls without any: accuracy, peak_vram_gb",
    )
    constraints: dict[Measurement, Comparison] = Field(
        default_factory=dict, description='limits by measurement, such as "<= 12"; what breaks one is not on the front'
    )
    training: TrainingConfig = Field(default=TrainingConfig(epochs=1), description="how long and how a trial trains")
    engine: Literal["auto", "packed", "process"] = Field(
        default="auto",
        description="packed: many trials in one pass over one frozen base; process: each by stock PEFT in a process of "
        "its own; auto packs what can be packed",
    )
    sampler: SamplerName = Field(default="mfgp", description="who proposes configurations")
    early_stopping: Literal["off", "rungs", "model"] = Field(
        default="model", description="which trials end before full fidelity"
    )
    budget: Budget = Field(default=Budget(), description="when the search ends")
    resources: Resources = Field(default=Resources(), description="what a trial gets, and how many run at once")
    tracking: Tracking = Field(default=Tracking(), description="where MLflow is")
    start_points: Annotated[StartPoints, BeforeValidator(_points)] = Field(
        default=StartPoints(), description="what is tried first"
    )
    baseline: StartPoint | None = Field(
        default=None, description="the user's own recipe: runs first and to the end; the front is compared with it"
    )
    warm_start: list[Annotated[str, BeforeValidator(_name)]] = Field(
        default_factory=list, description="earlier searches under the same root whose results teach the sampler"
    )
    confirm: Annotated[Confirm | None, BeforeValidator(_seeds)] = Field(
        default=None, description="train the front again with other seeds when the search has ended"
    )
    confirms: Annotated[str, BeforeValidator(_name)] | None = Field(
        default=None, description="the search whose front this one trains again; what `confirm` sets"
    )
    imported: str | None = Field(
        default=None, description="the table whose results these are; what `import-results` sets: nothing is run"
    )
    seed: Annotated[Whole, Ge(0), Le(2**31 - 1)] = Field(default=0, description="of sampling, adapters and row order")
    code: str | None = Field(default=None, description="folder of your own modules; none is that of this file")

    @model_validator(mode="before")
    @classmethod
    def _objectives_of_the_task(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("objectives") is None and str(raw.get("task")) in DEFAULT_OBJECTIVES:
            return {**raw, "objectives": DEFAULT_OBJECTIVES[raw["task"]]}
        return raw

    @field_validator("objectives")
    @classmethod
    def _objectives(cls, entries: list[ObjectiveEntry]) -> list[ObjectiveEntry]:
        names = [entry if isinstance(entry, str) else entry.name for entry in entries]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise PydanticCustomError("rule", "each objective once; repeated: {names}", {"names": ", ".join(repeated)})
        return entries

    @field_validator("warm_start")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise PydanticCustomError("rule", "each search once; repeated: {names}", {"names": ", ".join(repeated)})
        return names

    @model_validator(mode="after")
    def _times_are_measured_alone(self) -> Self:
        share = self.resources.gpus_per_trial
        timed = [objective.name for objective in self.objective_list if objective.alone]
        if timed and share != "auto" and share < 1:
            raise PydanticCustomError(
                "rule",
                "objective {name} is only honest on a device of its own; set resources.gpus_per_trial to 1 "
                "(got {share})",
                {"name": timed[0], "share": share},
            )
        return self

    @model_validator(mode="after")
    def _what_replicates_need(self) -> Self:
        if self.confirms is None and self.space.method is not None:
            raise PydanticCustomError("rule", "space.method is what `lorafront compare` sets; a search has none")
        if self.confirms is None and self.confirm is not None and len(self.name) > LONGEST:
            raise PydanticCustomError(
                "rule", "a search with confirm has a name of at most {most} characters", {"most": LONGEST}
            )
        return self

    @model_validator(mode="after")
    def _a_grid_is_discrete(self) -> Self:
        _, continuous = self.space.size()
        if self.sampler == "grid" and continuous:
            raise PydanticCustomError(
                "rule",
                "sampler grid needs lists of choices or steps; continuous: {names}",
                {"names": ", ".join(continuous)},
            )
        return self

    @property
    def objective_list(self) -> list[Objective]:
        """The objectives with direction and unit, in the file's order."""
        second = {objective.name: objective for objective in map(second_set_loss, self.data.also_evaluate)}
        return [
            e.objective if isinstance(e, FunctionObjective) else {**OBJECTIVES, **second}[e] for e in self.objectives
        ]

    @property
    def functions(self) -> dict[str, str]:
        """The user's own measurements: name to `module:function`."""
        return {entry.name: entry.function for entry in self.objectives if isinstance(entry, FunctionObjective)}

    def code_digests(self) -> dict[str, str]:
        """Digest of the file of each module that the user brought, by reference."""
        formats = [self.data.format, *(found.format for found in self.data.also_evaluate.values())]
        references = [name for name in (self.task, *formats, *self.functions.values()) if is_reference(name)]
        return {str(name): source_digest(str(name), self.code_folder) for name in references}

    @property
    def code_folder(self) -> Path | None:
        """Where the user's own modules are looked for."""
        return Path(self.code) if self.code else None

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The constraints, parsed."""
        return tuple(parse_limit(name, text) for name, text in self.constraints.items())


def read_search_file(path: Path) -> SearchFile:
    """Read and validate a file.

    Raises:
        InvalidInput: all problems, each with `file:line:column  key`.
    """
    data, positions, problems = parse_yaml(path)
    try:
        search = parse_search(data)
        if search.imported is not None:
            rule = "this file describes results that were imported; remove the line to train them here"
            problems.append(Problem(("imported",), rule))
    except InvalidInput as error:
        refused = [problem.path for problem in problems]
        problems += [problem for problem in error.problems if not _concerns(problem.path, refused)]
    if problems:
        raise InvalidInput(locate(problems, path, positions))
    return search


def _concerns(path: tuple[str | int, ...], others: list[tuple[str | int, ...]]) -> bool:
    """True where one of the others is the same place, inside of it, or around it."""
    return any(path[: len(other)] == other[: len(path)] for other in others)


def parse_search(data: dict[str, Any]) -> SearchFile:
    """Validate a mapping in the form of a search file.

    Raises:
        InvalidInput: all problems, each with its key path.
    """
    problems = list(_secrets(data, ()))
    try:
        search = SearchFile.model_validate(data)
    except ValidationError as error:
        hidden = {problem.path for problem in problems}  # a secret is shown by no other refusal either
        found = [_problem(details, data) for details in error.errors(include_url=False)]
        problems += [problem for problem in found if problem.path not in hidden or "(got" not in problem.message]
    else:
        problems += _points_outside(search, data)
    if problems:
        raise InvalidInput(problems)
    return search


def _points_outside(search: SearchFile, data: dict[str, Any]) -> Iterable[Problem]:
    """The user's start points, the baseline among them, that the space does not have."""
    given = data.get("start_points")
    section = ("start_points",) if isinstance(given, list) else ("start_points", "points")
    for index, point in enumerate(search.start_points.points):
        for key, message in outside(point, search.space, search.training.defaults()).items():
            yield Problem((*section, index, key), message)
    if search.baseline is not None:
        for key, message in outside(search.baseline, search.space, search.training.defaults()).items():
            yield Problem(("baseline", key), message)


def holds_secret(value: Any) -> bool:
    """Whether text that looks like a password or a token stands anywhere in a value."""
    return any(True for _ in _secrets(value, ()))


def _secrets(value: Any, path: tuple[str | int, ...]) -> Iterable[Problem]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _secrets(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _secrets(child, (*path, index))
    elif isinstance(value, str) and _SECRET.search(value):
        yield Problem(
            path, "looks like a secret; give it in the environment (HF_TOKEN, MLFLOW_TRACKING_PASSWORD) instead"
        )


def _problem(details: ErrorDetails, data: dict[str, Any]) -> Problem:
    """Pydantic's error in the words of the file."""
    path = _path_in_file(details["loc"], data)
    kind, facts, found = details["type"], details.get("ctx", {}), details["input"]
    got = f"(got {_short(found)})"
    bounds = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="), "less_than": ("lt", "<"),
              "less_than_equal": ("le", "<=")}  # fmt: skip
    if kind == "extra_forbidden":
        known = [key for key in _keys_at(path[:-1]) if key != path[-1]]
        return Problem(path, f"unknown key.{did_you_mean(str(path[-1]), known)}")
    if kind == "missing":
        return Problem(path, "missing; it has no default")
    if kind in bounds:
        return Problem(path, f"must be {bounds[kind][1]} {_plain(facts[bounds[kind][0]])} {got}")
    if kind == "literal_error":
        allowed = str(facts["expected"]).replace("'", "").replace(" or ", ", ")
        return Problem(path, f"must be one of {allowed} {got}.{did_you_mean(str(found), allowed.split(', '))}")
    if kind in {"too_short", "too_long"}:
        word = f"at least {facts['min_length']}" if kind == "too_short" else f"at most {facts['max_length']}"
        return Problem(path, f"needs {word} {'entry' if word.endswith(' 1') else 'entries'} {got}")
    if kind == "string_too_short":
        return Problem(path, "must not be empty")
    expected = {"string_type": "text", "bool_type": "true or false", "dict_type": "a mapping", "list_type": "a list",
                "model_type": "a mapping", "model_attributes_type": "a mapping"}  # fmt: skip
    if kind in expected:
        return Problem(path, f"must be {expected[kind]} {got}")
    return Problem(path, details["msg"])


def _plain(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _short(value: Any) -> str:
    text = repr(value)
    return textwrap.shorten(text, 80, placeholder="...")


def _path_in_file(location: tuple[str | int, ...], data: Any) -> tuple[str | int, ...]:
    """Pydantic's location without the tags of its unions and the keys that a short form leaves out."""
    path: list[str | int] = []
    here = data
    for index, part in enumerate(location):
        last = index == len(location) - 1
        inside = isinstance(here, dict) and part in here
        if part in FORMS | ALPHA_FORMS | OBJECTIVE_FORMS and not inside:
            continue
        if part == MAP_KEY:
            continue
        if (
            part in {"absolute", "name", "path", "function", "points"}
            and not inside
            and path
            and not (isinstance(here, dict) and last)
        ):
            continue
        path.append(part)
        if isinstance(here, dict):
            here = here.get(str(part))
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
    return tuple(path)


def _keys_at(path: tuple[str | int, ...]) -> list[str]:
    """Keys that a mapping at that place may have."""
    if not path:
        return list(SearchFile.model_fields)
    section = SearchFile.model_fields.get(str(path[0]))
    model = section.annotation if section is not None else None
    if len(path) == 1 and isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    if path[:2] == ("space", "alpha") and len(path) == 2:  # noqa: PLR2004  # the alpha mapping itself
        return [*AlphaRatio.model_fields, *AlphaAbsolute.model_fields, *Range.model_fields]
    if path[0] in {"start_points", "baseline"}:
        return list((PointAlpha if path[-1] == "alpha" else StartPoint).model_fields)
    if path[0] == "objectives":
        return list(FunctionObjective.model_fields)
    if path[:2] == ("data", "also_evaluate"):
        return list(SecondSet.model_fields)
    return list(Range.model_fields)
