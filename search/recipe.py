"""A configuration as any trainer has to be told it, in no trainer's words; the writers of formats translate it.

What every file of a recipe begins with stands here: what was found, on what, and what the format cannot say.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.config import ModelConfig

# What the rows of a search can be: plain text, prompt and completion, a conversation, or a text with its label.
Form = Literal["text", "pairs", "turns", "labelled"]
TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"


@dataclass(frozen=True)
class Recipe:
    """One configuration of a search.

    Attributes:
        facts: what was measured on what, a line each, for the head of a file.
        model: the base, its name as seen from the recipe's folder.
        task: of the search.
        auto_class: of transformers, which builds the model.
        pad_id: token that fills up a batch.
        lora: the configuration as it was executed.
        targets: PEFT's `target_modules`, in the model's own names.
        fan_in_fan_out: the model keeps its weights transposed (GPT-2).
        optimizer: `adamw` or `paged_adamw_8bit`.
        dtype: torch's name of what the base computes in.
        arguments: the training in the names of `transformers.TrainingArguments`.
        max_length: tokens per row.
        form: of the rows.
        framed: the rows have their begin and end tokens already.
        rows: folder of the rows as seen from the recipe's folder; one folder in it for each shape.
    """

    facts: tuple[str, ...]
    model: ModelConfig
    task: str
    auto_class: str
    pad_id: int
    lora: LoraConfiguration
    targets: tuple[str, ...]
    fan_in_fan_out: bool
    optimizer: str
    dtype: str
    arguments: Mapping[str, Any]
    max_length: int
    form: Form
    framed: bool
    rows: str

    def rows_as(self, shape: str) -> str:
        """Folder of the rows in that shape (search/recipe_rows.py)."""
        return f"{self.rows}/{shape}"

    @property
    def steps(self) -> int:
        """Optimizer steps of the trial."""
        return int(self.arguments["max_steps"])

    @property
    def whole_alpha(self) -> int:
        """Alpha for those who take whole numbers only."""
        return max(1, round(self.lora.alpha))

    def unsaid_alpha(self, trainer: str) -> list[str]:
        """What is lost where alpha must be a whole number."""
        if float(self.lora.alpha).is_integer():
            return []
        return [f"alpha {self.lora.alpha:g}: {trainer} takes whole numbers; {self.whole_alpha} is the nearest"]

    def unsaid_bias(self, trainer: str) -> list[str]:
        """What is lost where biases cannot be trained."""
        return [] if self.lora.bias == "none" else [f"bias {self.lora.bias}: {trainer} trains no biases"]


DRAWS = (
    "It draws the order of rows, the first A and dropout otherwise than the trial, so its numbers are near, not equal"
)
LENGTH = "max_steps is the length of the trial; for a full training take it out and set the number of epochs"


def commented(recipe: Recipe, command: str, remarks: Sequence[str], unsaid: Sequence[str]) -> str:
    """The head of a file, each line behind a `#`.

    Args:
        recipe: what the file is about.
        command: that runs it, in its folder.
        remarks: what a reader should know.
        unsaid: what of the configuration this format cannot say.
    """
    lines = [*recipe.facts, f"Run it in its folder: {command}", DRAWS, *remarks]
    if recipe.framed and recipe.form == "pairs":
        unsaid = [*unsaid, "the rows have begin and end tokens of their own, and a trainer adds its own to them"]
    if unsaid:
        lines += ["What this format cannot say, so that a training with it differs from the trial:"]
        lines += [f"- {line}" for line in unsaid]
    return "".join(f"# {line}\n" for line in lines)


class _Dotted(RoundTripRepresenter):
    """Numbers of YAML 1.1: without a dot it takes 1e-05 for text."""

    def represent_float(self, data: float) -> Any:
        """As Python says it, with a dot."""
        said = repr(data)
        return self.represent_scalar("tag:yaml.org,2002:float", said if "." in said else said.replace("e", ".0e"))


_Dotted.add_representer(float, _Dotted.represent_float)


def yaml_text(content: Mapping[str, Any]) -> str:
    """YAML that readers of version 1.1 understand as well, which those of the trainers are."""
    stream, yaml = io.StringIO(), YAML()
    yaml.width = 4096  # no line of a path is broken
    yaml.Representer = _Dotted
    yaml.dump(dict(content), stream)
    return stream.getvalue()
