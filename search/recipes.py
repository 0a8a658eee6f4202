"""The formats of an export beside PEFT's own folder: files of other trainers, each written into the folder of a trial.

The rows that they train on stand once for all trials, in `rows/` beside the folders (search/recipe_rows.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafront.search import recipe_axolotl, recipe_llamafactory, recipe_transformers, recipe_trl, recipe_unsloth
from lorafront.search.front import values
from lorafront.search.recipe import Recipe
from lorafront.search.recipe_rows import RecipeRows, form_of
from lorafront.search.study_table import VRAM, StudyTable, TrialRecord
from lorafront.search.tables import number
from lorafront.spaces.errors import InvalidInput, did_you_mean
from lorafront.trainables.checkpoint import write_text
from lorafront.trainables.formats import format_named

CAUSAL = ("causal_lm",)
EVERY_TASK = ("causal_lm", "seq_cls", "seq_2_seq_lm")
ROWS = "rows"
INDEX = "index.json"  # of an export: its trials


@dataclass(frozen=True)
class Format:
    """How a trainer is told.

    Attributes:
        files: name to content.
        shapes: in which shape it reads rows of each form.
        command: runs it in the folder of the trial.
        tasks: what it can train.
    """

    files: Callable[[Recipe], dict[str, str]]
    shapes: Mapping[str, str]
    command: str
    tasks: tuple[str, ...] = CAUSAL


def _format(module: Any, tasks: tuple[str, ...] = CAUSAL) -> Format:
    return Format(module.files, module.SHAPES, module.COMMAND, tasks)


PEFT, MERGED = "peft", "merged"
RECIPES = {
    "transformers": _format(recipe_transformers, EVERY_TASK),
    "trl": _format(recipe_trl),
    "axolotl": _format(recipe_axolotl),
    "llamafactory": _format(recipe_llamafactory),
    "unsloth": _format(recipe_unsloth),
}
FORMATS = (PEFT, *RECIPES, MERGED)


def chosen_formats(asked: Sequence[str]) -> list[str]:
    """The formats of `--format a,b --format c`, each once.

    Raises:
        InvalidInput: one is unknown.
    """
    names = [name.strip() for entry in asked for name in entry.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise InvalidInput(f"--format must be one of {known} (got {name!r}).{did_you_mean(name, FORMATS)}")
    return list(dict.fromkeys(names))


def check_task(table: StudyTable, formats: Sequence[str]) -> None:
    """Refuse formats whose trainer does not know the task of a search.

    Raises:
        InvalidInput: names the formats that do.
    """
    task = table.search.task
    wrong = [name for name in formats if name in RECIPES and task not in RECIPES[name].tasks]
    if wrong:
        good = ", ".join([PEFT, *(name for name, found in RECIPES.items() if task in found.tasks), MERGED])
        trains = ", ".join(sorted({task for name in wrong for task in RECIPES[name].tasks}))
        raise InvalidInput(f"format {', '.join(wrong)} trains {trains}, and this search {task}; formats for it: {good}")


def write_rows(rows: RecipeRows, formats: Sequence[str], out: Path) -> None:
    """What the recipes of an export train and evaluate on."""
    rows.write(out / ROWS, sorted({RECIPES[name].shapes[rows.form] for name in formats if name in RECIPES}))


def write_recipes(recipe: Recipe, formats: Sequence[str], out: Path) -> None:
    """Add the files of the formats to a trial's folder."""
    for name in formats:
        if name in RECIPES:
            for file, text in RECIPES[name].files(recipe).items():
                write_text(out / file, text)


def recipe_of(
    table: StudyTable, trial: TrialRecord, adapter: Mapping[str, Any], base: Mapping[str, Any],
    arguments: Mapping[str, Any], final: Path,
) -> Recipe:  # fmt: skip
    """What a trial trained.

    Args:
        table: its study.
        trial: at full fidelity.
        adapter: content of its `adapter_config.json`.
        base: how its base is loaded, as its checkpoint has it.
        arguments: its training in the names of transformers.
        final: the folder where the recipe will stand.
    """
    search = table.search
    lora, training = trial.lora, search.training
    if trial.execution is not None:
        lora, training = trial.execution.applied(lora, training)
    form = format_named(search.data.format, search.code_folder)
    name = search.model.name
    if Path(name).is_absolute():
        name = Path(os.path.relpath(name, final)).as_posix()
    return Recipe(
        facts=facts(table, trial),
        model=search.model.model_copy(update={"name": name}),
        task=search.task,
        auto_class=str(base["auto_class"]),
        pad_id=int(base["pad_token_id"]),
        lora=lora,
        targets=tuple(sorted(adapter["target_modules"])),
        fan_in_fan_out=bool(adapter["fan_in_fan_out"]),
        optimizer=training.optimizer,
        dtype=str(trial.measurements["compute_dtype"]),
        arguments=arguments,
        max_length=search.data.max_length,
        form=form_of(search, packed=form.packed),
        framed=form.framed,
        rows=f"../{ROWS}",
    )


def facts(table: StudyTable, trial: TrialRecord) -> tuple[str, ...]:
    """What was measured on what, a line each."""
    from lorafront.search.report import versions

    search, measured = table.search, trial.measurements
    objectives = search.objective_list
    found = zip(objectives, values(trial, objectives), strict=True)
    told = [f"{o.label} {number(value, o)} {o.unit}".strip() for o, value in found if o.name != VRAM]
    predicted = measured.get(f"predicted_{VRAM}")
    peak = f"{measured[VRAM]:.4g} GiB ({measured.get('peak_vram_source')})" if measured.get(VRAM) else "not measured"
    data, rows = Path(search.data.path), trial.last.rows if trial.last else 0
    source, form = data.name if data.is_absolute() else search.data.path, search.data.format
    return (
        f"Trial {trial.number} of lorafront search {search.name}: {trial.lora.label}",
        f"Measured: {', '.join(told)}; on the {search.task} task, one training",
        f"Peak VRAM: {peak}; predicted: {f'{predicted:.4g} GiB' if predicted else 'nothing'}",
        f"Trained on {rows} rows (repeats counted) of {source}, format {form}, seed {table.seed_of(trial)}",
        f"Versions where this was written: {versions()}",
    )
