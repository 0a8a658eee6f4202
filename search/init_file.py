"""The commented search file that `lorafront init` writes; its defaults are the schema's own."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lorafront.search.objective_entry import DEFAULT_OBJECTIVES
from lorafront.search.own_recipe import LENGTHS, OwnRecipe
from lorafront.search.own_recipe_fields import Values, plain
from lorafront.search.widened_space import widened
from lorafront.spaces import presets
from lorafront.spaces.objectives import OBJECTIVES
from lorafront.spaces.start_points import DEFAULT_POINT
from lorafront.trainables.config import TrainingConfig
from lorafront.trainables.formats import FORMATS

TEMPLATE = """\
# A lorafront search. Check it with `lorafront check FILE`, run it with `lorafront run FILE`.
name: {name}                # names the folder, the study and the MLflow experiment

model: {model}              # folder, or name on the Hugging Face hub
task: {task}               # causal_lm | seq_cls | seq_2_seq_lm

data:
  path: {data}              # file (.txt, .jsonl, .csv, .tsv, .parquet), folder, or hub name
  format: {format}          # {formats}
{columns}       # where the data calls a column otherwise
  # header: [text, label]           # names of the columns of a CSV or TSV file without a header line
{eval_path}  # without it: the data's own validation split, else a seeded part of `path`
  # also_evaluate: {{general: {{path: wiki.txt, format: text}}}}   # its loss is the objective eval_general_loss
{more_data}  max_length: {max_length}  # tokens per row
{train_rows}
{eval_rows}

# Each parameter is one value, a list of choices, or a range {{low, high, log, step}}.
space:
  rank: {rank}
  alpha: {alpha}  # times the rank; {{absolute: [16, 32]}} sets alpha itself
  modules: {modules}
  quantization: {quantization}   # also nf4_double, fp4, fp16, fp32
  dropout: {dropout}
  bias: {bias}
  learning_rate: {learning_rate}
  # also: batch_size, gradient_accumulation, weight_decay, warmup, scheduler

objectives: [{quality}, peak_vram_gb]   # two to four of: {objectives};
                                          # eval_NAME_loss; your own {{function: module:name, direction: maximize}}
constraints: {{}}                          # such as {{peak_vram_gb: "<= 12"}}

training:
  {length:<30}# epochs, steps, or rows
  rungs: 4                      # points at which a trial reports, each at twice the rows of the one before
  batch_size: {batch_size}
  gradient_accumulation: {gradient_accumulation}
  optimizer: {optimizer}              # or paged_adamw_8bit
  scheduler: {scheduler}             # or cosine, constant
  warmup: {warmup}                  # share of the steps
  max_grad_norm: {max_grad_norm}
  gradient_checkpointing: {gradient_checkpointing}
{more_training}
sampler: mfgp                   # or tpe, gp, nsga2, random, grid
early_stopping: model           # trials that are behind end at a rung; or rungs, off

{baseline}

# What is tried first: configurations that guides recommend (a quarter of the budget at most), then your own, which
# always run; what a point leaves out is filled in. {{recommended: false, points: [...]}} leaves the guides out.
# start_points: [{{rank: 16, alpha: {{ratio: 2}}, modules: attention, quantization: nf4}}]
# warm_start: [an-earlier-search]       # its results teach the sampler; same model, data, length and objectives

budget: {{trials: 32}}           # also hours: 8, gpu_hours: 20; whichever comes first
resources: {{gpus_per_trial: auto}}   # by predicted memory; or such as 0.25. Without a GPU also memory_per_worker: 4GB
engine: auto                    # trials train many at a time over one base where they can; or packed, process
# tracking: {{uri: "http://127.0.0.1:5000", required: false}}   # default: SQLite beside the searches
seed: {seed}
"""

COMMENT = 100  # characters of a line of comments
EXACT = 2**53  # from here on not every whole number is a float
_SPACE = ("rank", "alpha", "modules", "quantization", "dropout", "bias", "learning_rate")
_TRAINING = ("batch_size", "gradient_accumulation", "optimizer", "scheduler", "warmup", "max_grad_norm",
             "gradient_checkpointing")  # fmt: skip
_NO_BASELINE = """\
# Your own recipe: runs first and to the end, and the front is compared with it. `lorafront init --from RECIPE` reads
# those of axolotl, LLaMA-Factory, TRL and PEFT.
# baseline: {rank: 16, alpha: 32, modules: attention, quantization: nf4, learning_rate: 2e-4}"""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]*")
_WORDS = frozenset({"true", "false", "null"})  # to YAML no text


def ours(task: str) -> Values:
    """What a file says where nobody said anything, by place."""
    training = TrainingConfig(epochs=1)
    point = DEFAULT_POINT.said()
    return {
        "model.name": "Qwen/Qwen3-0.6B", "data.path": "tatsu-lab/alpaca",
        "data.format": "text_label" if task == "seq_cls" else "alpaca", "data.max_length": 512, "task": task, "seed": 0,
        "training.epochs": 1, **{f"training.{name}": getattr(training, name) for name in _TRAINING},
        **{f"baseline.{name}": value for name, value in point.items() if name != "alpha"},
    }  # fmt: skip


def commented(name: str, asked: Values, recipe: OwnRecipe | None = None) -> str:
    """The file's text.

    Args:
        name: of the search.
        asked: what the user asked for, by place; it comes before what a recipe says.
        recipe: the user's own.
    """
    told = _told(asked, recipe) if recipe else {"data.train_rows": 2000, "data.eval_rows": 200, **asked}
    task = str(told.get("task", "causal_lm"))
    values = {**ours(task), **told}
    values.setdefault("baseline.alpha", 2 * values["baseline.rank"])
    length = next((place for place in LENGTHS if place in told), "training.epochs")
    point = {key: values[f"baseline.{key}"] for key in _SPACE}
    space = widened(presets.DEFAULT_SPACE, point) if recipe else presets.DEFAULT_SPACE
    return TEMPLATE.format(
        name=_flow(name), model=_model(values), task=task, formats=" | ".join(FORMATS), seed=values["seed"],
        data=_flow(values["data.path"]), format=values["data.format"], max_length=values["data.max_length"],
        columns=_line(values, "columns", "{text: sentence}"), eval_path=_line(values, "eval_path", "valid.jsonl"),
        train_rows=_line(values, "train_rows", "2000      # without it all"),
        eval_rows=_line(values, "eval_rows", "200        # without it a tenth, 500 at most"),
        more_data=_more(values, "data", ("config_name", "revision")),
        objectives=", ".join(OBJECTIVES), quality=DEFAULT_OBJECTIVES.get(task, ["perplexity"])[0],
        length=f"{length.removeprefix('training.')}: {_flow(values[length])}",
        more_training=_more(values, "training", ("eval_batch_size", "weight_decay")),
        baseline=_baseline(point, told_of(recipe, asked)) if recipe else _NO_BASELINE,
        **{key: _flow(values[f"training.{key}"]) for key in _TRAINING},
        **{key: _flow(space[key]) for key in _SPACE},
    )  # fmt: skip


def told_of(recipe: OwnRecipe, asked: Values) -> list[str]:
    """What the user should know of a recipe that was read, a line each."""
    told = _told(asked, recipe)
    task = str(told.get("task", "causal_lm"))
    silent = {place: value for place, value in ours(task).items() if place not in told}
    if "baseline.alpha" not in told:
        silent["baseline.alpha"] = "twice the rank"
    if any(place in told for place in LENGTHS):
        silent.pop("training.epochs", None)
    theirs = {place: value for place, value in recipe.theirs.items() if place not in asked}
    lines = [f"{recipe.file} is read as a recipe of {recipe.kind}; what it trains is the baseline"]
    for whose, values in ((f"{recipe.kind}'s own default", theirs), ("ours", silent)):
        listed = ", ".join(f"{place} {plain(_flow(value))}" for place, value in sorted(values.items()))
        lines += [f"not in it, so {whose}: {listed}"] if listed else []
    lines += ["in it, and without a counterpart here:"] if recipe.left else []
    return [*lines, *(f"  {line}" for line in recipe.left)]


def _told(asked: Values, recipe: OwnRecipe) -> Values:
    """What somebody said; other data than the recipe's have other columns, splits and configurations."""
    said = {**recipe.theirs, **recipe.said}
    if "data.path" in asked:
        said = {place: v for place, v in said.items() if not place.startswith("data.") or place == "data.max_length"}
    if "data.format" in asked:
        said.pop("data.columns", None)
    if "model.name" in asked:
        said.pop("model.revision", None)
    return {**said, **asked}


def _baseline(point: Mapping[str, Any], notes: Sequence[str]) -> str:
    comments = [
        f"# {line}"
        for note in ("Your own recipe: runs first and to the end, and the front is compared with it.", *notes)
        for line in textwrap.wrap(note, COMMENT, subsequent_indent="    ", break_on_hyphens=False)
    ]
    return "\n".join([*comments, "baseline:", *(f"  {key}: {_flow(value)}" for key, value in point.items())])


def _model(values: Values) -> str:
    said = {key: values[place] for key in ("name", "revision", "attention") if (place := f"model.{key}") in values}
    return _flow(said) if len(said) > 1 else _flow(said["name"])


def _line(values: Values, key: str, example: str) -> str:
    place = f"data.{key}"
    return f"  {key}: {_flow(values[place])}" if place in values else f"  # {key}: {example}"


def _more(values: Values, section: str, keys: Sequence[str]) -> str:
    said = [(key, values[place]) for key in keys if (place := f"{section}.{key}") in values]
    return "".join(f"  {key}: {_flow(value)}\n" for key, value in said)


def _flow(value: Any) -> str:
    """A value on one line of YAML; text is quoted where it is more than a plain word."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < EXACT else repr(value)
    if isinstance(value, str):
        plain_word = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if plain_word else json.dumps(value, ensure_ascii=False)
    return str(value)
