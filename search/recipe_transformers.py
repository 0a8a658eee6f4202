"""A script that trains the configuration anew with transformers and PEFT alone, from the files beside it."""

from __future__ import annotations

import json
from importlib.resources import files as package_files

from lorafront.search.recipe import Recipe, commented

FILE, BASE = "train.py", "base.json"
SHAPES = {"text": "text", "pairs": "pairs", "turns": "turns", "labelled": "labelled"}
COMMAND = f"python {FILE}"


def files(recipe: Recipe) -> dict[str, str]:
    """Names of files and what they hold."""
    base = {
        "model": recipe.model.name,
        "revision": recipe.model.revision,
        "attention": None if recipe.model.attention == "auto" else recipe.model.attention,
        "auto_class": recipe.auto_class,
        "dtype": recipe.dtype,
        "pad_id": recipe.pad_id,
        "task": recipe.task,
        "form": recipe.form,
        "framed": recipe.framed,
        "max_length": recipe.max_length,
        "rows": recipe.rows_as(SHAPES[recipe.form]),
    }
    script = package_files("lorafront.search").joinpath("train_script.py").read_text(encoding="utf-8")
    return {
        FILE: commented(recipe, COMMAND, [], []) + script,
        BASE: json.dumps(base, indent=2, sort_keys=True) + "\n",
    }
