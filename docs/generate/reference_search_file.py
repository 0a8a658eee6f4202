"""The page of the search file: every section and field, from the models that read it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from reference_markdown import page, table

from lorafront.search.objective_entry import FunctionObjective
from lorafront.search.resources import Resources
from lorafront.search.search_file import Budget, Confirm, FullTuning, SearchFile, Tracking
from lorafront.spaces.lora import AlphaAbsolute, AlphaRatio, LoraConfiguration, LoraSpace
from lorafront.spaces.parameters import Range
from lorafront.spaces.presets import PRESETS
from lorafront.spaces.start_points import PointAlpha, StartPoint, StartPoints
from lorafront.trainables.config import DataConfig, ModelConfig, SecondSet, TrainingConfig
from lorafront.trainables.formats import FORMATS

SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": SearchFile,
    "model": ModelConfig,
    "data": DataConfig,
    "also_evaluate": SecondSet,
    "space": LoraSpace,
    "Range": Range,
    "alpha as a ratio": AlphaRatio,
    "alpha as a number": AlphaAbsolute,
    "Function as an objective": FunctionObjective,
    "training": TrainingConfig,
    "budget": Budget,
    "resources": Resources,
    "start_points": StartPoints,
    "Start point and baseline": StartPoint,
    "alpha of a start point": PointAlpha,
    "confirm": Confirm,
    "full_tuning": FullTuning,
    "tracking": Tracking,
}
INTRO = """A search file is YAML 1.2; `lorafront init` writes one with comments, `lorafront check` prints yours with
every default filled in, and errors name line, column, key, the value found and what would do. Unknown keys are errors.
Each parameter of `space` takes one value, a list of choices, or a range `{low: …, high: …}`."""


def search_file_page() -> str:
    """A heading and a table for each section."""
    blocks = [INTRO]
    for title, model in SECTIONS.items():
        blocks += [f"## {title}", said_of(model), table(["key", "value", "default", "meaning"], list(rows(model)))]
    blocks += [
        "## Formats",
        "Values of `data.format`; [one of your own](../how-to/own-code.md#a-format) is `module:name`.",
        table(
            ["format", "columns that every row must have", "that a row may have"],
            [[f"`{name}`", codes(form.columns), codes(form.optional)] for name, form in FORMATS.items()],
        ),
        "## Recommended start points",
        "What a search tries first unless `start_points.recommended` is false, at the nearest point of its space.",
        table(
            ["name", "configuration", "source"],
            [[preset.name, f"`{literal(preset.point)}`", preset.source] for preset in PRESETS],
        ),
    ]
    return page("The search file", *blocks)


def codes(names: Iterable[str]) -> str:
    """Names with commas."""
    return ", ".join(f"`{name}`" for name in names)


def said_of(model: type[BaseModel]) -> str:
    """What a section's docstring says."""
    return "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(model) or "").split("\n\n"))


def rows(model: type[BaseModel]) -> Iterable[list[str]]:
    """Key, values, default and meaning of each field."""
    schema = model.model_json_schema(mode="validation")
    for name, field in model.model_fields.items():
        value = words(schema["properties"][name], schema.get("$defs", {}), bounds(field))
        yield [f"`{name}`", value, default(field.get_default(call_default_factory=True)), meaning(model, name)]


def meaning(model: type[BaseModel], name: str) -> str:
    """A field's description; of a hyperparameter that of the configuration that it becomes part of."""
    own = model.model_fields[name].description
    shared = LoraConfiguration.model_fields.get(name) if model in {LoraSpace, StartPoint} else None
    found = own or (shared.description if shared else None)
    if not found:
        raise SystemExit(f"{model.__name__}.{name} has no description")
    return found


def default(value: Any) -> str:
    """As a search file would say it."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "[below](#" + next((t for t, m in SECTIONS.items() if isinstance(value, m)), "") + ")"
    return "none" if value is None else f"`{literal(value)}`"


def literal(value: Any) -> str:
    """YAML's flow style."""
    if isinstance(value, BaseModel):
        return literal(value.model_dump(exclude_none=True, exclude_defaults=True))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {literal(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(literal, value)) + "]"
    return value if isinstance(value, str) and value else json.dumps(value)


def words(schema: dict[str, Any], defs: dict[str, Any], bound: str = "") -> str:
    """A JSON schema in words; `bound` belongs to its numbers."""
    if "$ref" in schema:
        return named(schema["$ref"].rsplit("/", 1)[1], defs, bound)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return either([part for part in schema[key] if part.get("type") != "null"], defs, bound)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{choice}`" for choice in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "number")
    if kind == "array":
        return f"list of {words(schema['items'], defs, bound)}{entries(schema)}"
    if kind == "object":
        held = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
        return f"mapping of names to {words(held, defs, bound)}"
    return {"boolean": "`true`, `false`", "string": "text"}.get(kind, f"{kind}{bound}")


def either(parts: list[dict[str, Any]], defs: dict[str, Any], bound: str) -> str:
    """Alternatives; an item, a list of such items and a range of them are said in short."""
    if len(parts) > 1 and parts[1].get("type") == "array" and parts[1].get("items") == parts[0]:
        last = parts[-1].get("$ref", "")
        return f"{words(parts[0], defs, bound)}; or a list" + (", or a [range](#range)" if "Range" in last else "")
    return " or ".join(words(part, defs, bound) for part in parts)


def named(name: str, defs: dict[str, Any], bound: str) -> str:
    """A section, with a link to where it stands."""
    title = next((title for title, model in SECTIONS.items() if model.__name__ == name), None)
    return words(defs[name], defs, bound) if title is None else f"[{title}](#{title.lower().replace(' ', '-')})"


def bounds(field: Any) -> str:
    """` from 1 to 99`, ` above 0`: of the numbers of a field, which stand behind validators that JSON schema skips."""
    said = {}
    for found in limits((field.annotation, *field.metadata)):
        for attribute, word in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below")):
            if (end := getattr(found, attribute, None)) is not None:
                said[word] = f" {word} {end}"
    return "".join(said.get(word, "") for word in ("from", "above", "to", "below"))


def limits(annotation: Any) -> Iterable[Any]:
    """Everything that an annotation holds, at any depth."""
    parts = annotation if isinstance(annotation, (tuple, list)) else get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from limits(part)


def entries(schema: dict[str, Any]) -> str:
    """How many entries a list has, where that is few."""
    least, most = schema.get("minItems"), schema.get("maxItems")
    return f", {least} to {most} of them" if least and most and most < 10 else ""  # noqa: PLR2004
