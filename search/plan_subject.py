"""What a plan is about: the configurations of a model with their batches, from a search file or from a config alone.

Of a search file they are what the search can propose on the batches that its trials will see; of a model alone the
default space on batches of one size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search.known_limits import MOST_LISTED, configurations, listed
from lorafront.search.peak_memory import PeakMemory
from lorafront.spaces import modules
from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.spaces.lora import LoraConfiguration, resolve
from lorafront.spaces.presets import DEFAULT_SPACE, PRESETS
from lorafront.trainables import models
from lorafront.trainables.config import TrainingConfig
from lorafront.trainables.memory_model import MemoryModel, Shapes, exact
from lorafront.trainables.model_facts import ModelFacts, model_facts, natural_task
from lorafront.trainables.task import TASKS, task_named

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from lorafront.search.prepared import Prepared

LABELS = ("0", "1")  # of a classifier of which nothing is known
LONGEST = 2**20  # tokens of a row, of a model that takes any


@dataclass(frozen=True)
class Subject:
    """Configurations of one model.

    Attributes:
        name: of the model, or of the search.
        parameters: of the model.
        configurations: that are planned, each once.
        training: optimizer and checkpointing.
        largest: sizes of the largest batch that a configuration trains on.
        longest: tokens of a row that the model takes.
        model: predicts memory.
        notes: what the user should know.
    """

    name: str
    parameters: int
    configurations: tuple[LoraConfiguration, ...]
    training: TrainingConfig
    largest: Callable[[LoraConfiguration], Shapes]
    longest: int
    model: MemoryModel
    notes: tuple[str, ...] = ()


def predictor(
    config: PretrainedConfig, task: str, labels: tuple[str, ...], attention: Any, traced: Path
) -> MemoryModel:
    """What all plans predict with.

    Args:
        config: of the model.
        task: its name.
        labels: of the classes.
        attention: which implementation.
        traced: folder of what was traced before; made where it is missing, so that the next plan is quick.
    """
    traced.mkdir(parents=True, exist_ok=True)
    return MemoryModel(config, task_named(task), labels, attention, traced, "cuda")


def of_model(name: str, *, batch: int, length: int | None, checkpointing: bool, traced: Path) -> Subject:
    """The default space on one model.

    Args:
        name: folder with a `config.json`, shipped architecture, or name on the hub.
        batch: rows of a forward and backward pass.
        length: tokens of a row; none is 512, or what the model takes if that is less.
        checkpointing: of gradients.
        traced: folder of what was traced before.

    Raises:
        InvalidInput: there is no such model, or it takes no rows of that length.
    """
    config = models.load_architecture(name)
    task = natural_task(config)
    labels = LABELS if task_named(task).new_head else ()
    facts = model_facts(config, task_named(task))
    positions = facts.positions or LONGEST
    if length is not None and length > positions:
        raise InvalidInput([Problem(("--length",), f"{length} is more than the {positions} positions of the model")])
    tokens = length or min(512, positions)
    training = TrainingConfig(epochs=1, batch_size=batch, gradient_checkpointing=checkpointing)
    shapes = Shapes(batch, tokens, tokens if config.is_encoder_decoder else 0, padded=batch > 1)
    found, notes = _default_space(facts, training)
    return Subject(
        name=name,
        parameters=facts.parameters,
        configurations=found,
        training=training,
        largest=lambda _: shapes,
        longest=positions,
        model=predictor(config, task, labels, "auto", traced),
        notes=(*notes, *_inexact(config, tokens)),
    )


def of_search(prepared: Prepared, traced: Path) -> Subject:
    """What a search that passed its checks can propose.

    Args:
        prepared: the search.
        traced: folder of what was traced before.

    Raises:
        InvalidInput: its task is the user's own, whose batches are not known.
    """
    search = prepared.search
    if search.task not in TASKS:
        message = f"a plan needs a task whose batches are known: {', '.join(TASKS)} (got {search.task})"
        raise InvalidInput([Problem(("task",), message)])
    config = models.load_config(search.model)
    model = predictor(config, search.task, prepared.tokens.labels, search.model.attention, traced)
    memory = PeakMemory(lambda: model, search, prepared.tokens, prepared.rungs[-1])
    notes = (
        [] if listed(search.space) else [f"the space is too large to list: shares are those of {MOST_LISTED:,} draws"]
    )
    if search.training.execution == "auto":
        notes.append("planned as the file gives it; execution: auto cuts passes and recomputes where more must fit")
    return Subject(
        name=search.name,
        parameters=prepared.facts.parameters,
        configurations=tuple(configurations(search.space, search.training.defaults(), prepared.canonical)),
        training=search.training,
        largest=memory.largest,
        longest=prepared.facts.positions or LONGEST,
        model=model,
        notes=(*notes, *_inexact(config, search.data.max_length)),
    )


def _default_space(facts: ModelFacts, training: TrainingConfig) -> tuple[tuple[LoraConfiguration, ...], list[str]]:
    """Ranks, modules and quantizations of the default space; the rest as the guides recommend."""
    named: dict[tuple[str, ...], str] = {}
    notes = []
    for module_set in DEFAULT_SPACE["modules"]:
        try:
            names = modules.resolve(module_set, list(facts.linears)).names
        except modules.ModuleProblem as error:
            notes.append(f"without modules {module_set}: {error}")
            continue
        if named.setdefault(names, module_set) != module_set:
            notes.append(f"modules {module_set} are {named[names]} on this model")
    recommended = {**PRESETS[0].point, "alpha": 1}  # which has no size
    values = {**training.defaults(), **recommended}
    found = [
        resolve({**values, "rank": rank, "modules": module_set, "quantization": quantization}, {})
        for names, module_set in named.items()
        for quantization in DEFAULT_SPACE["quantization"]
        for rank in DEFAULT_SPACE["rank"]
        if rank <= min(min(facts.linears[name]) for name in names)
    ]
    return tuple(found), notes


def _inexact(config: PretrainedConfig, longest: int) -> list[str]:
    if exact(config, longest):
        return []
    return ["an approximation: sliding windows and sides of different depth follow other rules"]
