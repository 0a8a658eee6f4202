"""Results of earlier searches as observations of a new one: which searches compare, and which results it can use.

An observation teaches the sampler and nothing else: it is in no budget, front, export or MLflow run. Pure, apart from
reading the earlier studies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafront.search.paths import RootPaths
from lorafront.search.search_file import SearchFile
from lorafront.search.study_table import StudyTable, read_study
from lorafront.spaces.errors import InvalidInput, LorafrontError, Problem
from lorafront.spaces.lora import LoraConfiguration, LoraSpace, resolve
from lorafront.spaces.start_points import contains
from lorafront.trainables.trial import Report

# What changes the numbers of a trial and is neither in its configuration nor its length, which the rungs say.
SAME_TRAINING = ("optimizer", "max_grad_norm", "gradient_checkpointing")


@dataclass(frozen=True)
class Observation:
    """A result at full fidelity of an earlier search, expressed in the space of a new one.

    Attributes:
        source: `NAME trial 3`.
        lora: the configuration.
        params: the same under the new space's names.
        report: what it measured.
        repeatable: the earlier search had the same seed, so a trial would give the same numbers again.
    """

    source: str
    lora: LoraConfiguration
    params: dict[str, Any]
    report: Report
    repeatable: bool


@dataclass(frozen=True)
class WarmStart:
    """What earlier searches teach, and what is said about it."""

    observations: tuple[Observation, ...] = ()
    notes: tuple[str, ...] = ()


def warm_start(
    search: SearchFile,
    root: RootPaths,
    *,
    data: Mapping[str, Any],
    canonical: Callable[[LoraConfiguration], LoraConfiguration],
    modules: Callable[[str], str],
) -> WarmStart:
    """Read the searches that `warm_start` names.

    Args:
        search: the new one, resolved on its model.
        root: where the earlier ones stand.
        data: token file, rungs and code digests of the new one, as its study will keep them.
        canonical: the simplest configuration that trains the same on this model.
        modules: an earlier module set to the one of this space that means the same on this model, else itself.

    Raises:
        InvalidInput: one is not there, cannot be read, or is not comparable; all of them at once.
    """
    problems: list[Problem] = []
    observations: list[Observation] = []
    notes: list[str] = []
    for index, name in enumerate(search.warm_start):
        try:
            table = read_study(root.existing(name).study_db)
        except LorafrontError as error:
            problems.append(Problem(("warm_start", index), str(error)))
            continue
        different = differences(search, data, table)
        if different:
            problems.append(Problem(("warm_start", index), f"{name} cannot teach this search: {'; '.join(different)}"))
            continue
        found = _observations(search, table, canonical, modules)
        observations += found
        notes.append(_note(name, len(table.complete), len(found)))
    if problems:
        raise InvalidInput(problems)
    return WarmStart(tuple(observations), tuple(notes))


def differences(search: SearchFile, data: Mapping[str, Any], earlier: StudyTable) -> list[str]:
    """Why the earlier results do not compare, a phrase each; none where they do."""
    old = earlier.search
    pairs: Sequence[tuple[str, Any, Any]] = (
        ("model", _model(old), _model(search)),
        ("task", old.task, search.task),
        ("rows of tokens", earlier.data.get("tokens"), data["tokens"]),
        ("rows at full fidelity", _last(earlier.data), _last(data)),
        ("objectives", _objectives(old), _objectives(search)),
        ("your own code", earlier.data.get("code"), dict(data["code"])),
        *((f"training.{key}", getattr(old.training, key), getattr(search.training, key)) for key in SAME_TRAINING),
    )
    return [f"its {what} {_shown(theirs)} here {_shown(ours)}" for what, theirs, ours in pairs if theirs != ours]


def expressed(
    lora: LoraConfiguration,
    space: LoraSpace,
    defaults: Mapping[str, Any],
    canonical: Callable[[LoraConfiguration], LoraConfiguration],
) -> dict[str, Any] | None:
    """The values under the space's names that come to the same configuration; None where it lies outside."""
    values: dict[str, Any] = {}
    for name, parameter in space.parameters().items():
        value = value_of(lora, name, parameter)
        if name == "bias" and not contains(parameter, value):
            continue  # another choice may be the same on this model: below
        if not contains(parameter, value):
            return None
        values[name] = value
    tried = [values] if "bias" in values else [{**values, "bias": bias} for bias in ("lora_only", "all")]
    for candidate in tried:
        if contains(space.bias, candidate["bias"]) and canonical(resolve(candidate, defaults)) == lora:
            return candidate
    return None


def value_of(lora: LoraConfiguration, name: str, parameter: Any) -> Any:
    """Of a parameter under the sampler's name; a ratio is the very choice that it was, which a division may miss."""
    if name != "alpha_ratio":
        return getattr(lora, name)
    choices = parameter if isinstance(parameter, list) else []
    return next((ratio for ratio in choices if ratio * lora.rank == lora.alpha), lora.alpha / lora.rank)


def _observations(
    search: SearchFile,
    table: StudyTable,
    canonical: Callable[[LoraConfiguration], LoraConfiguration],
    modules: Callable[[str], str],
) -> list[Observation]:
    found = []
    for trial in table.complete:
        if trial.result is None:
            continue
        lora = trial.lora.model_copy(update={"modules": modules(trial.lora.modules)})
        params = expressed(lora, search.space, search.training.defaults(), canonical)
        if params is not None:
            source = f"{table.search.name} trial {trial.number}"
            found.append(Observation(source, lora, params, trial.result, table.search.seed == search.seed))
    return found


def _note(name: str, complete: int, used: int) -> str:
    skipped = f"; {complete - used} more lie outside this space" if complete > used else ""
    plural = "" if used == 1 else "s"
    return f"{used} result{plural} of {name} teach{'es' if used == 1 else ''} the sampler{skipped}"


def _model(search: SearchFile) -> str:
    model = search.model
    return " ".join(
        [model.name, *([f"at {model.revision}"] if model.revision else []), f"({model.attention} attention)"]
    )


def _last(data: Mapping[str, Any]) -> int | None:
    rungs = data.get("rungs")
    return rungs[-1] if rungs else None


def _objectives(search: SearchFile) -> list[str]:
    return sorted(f"{o.name} ({o.direction})" for o in search.objective_list)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
