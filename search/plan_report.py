"""A plan as text: tables for the terminal, JSON, CSV. Pure apart from rich's drawing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from lorafront.search.correction import MARGIN
from lorafront.search.gpu_memory import CONTEXT, OVER, TIERS
from lorafront.search.plan import LARGEST_BATCH, Limits, Plan, Row, limits
from lorafront.search.plan_question import Answer
from lorafront.search.tables import COMPACT
from lorafront.spaces.sizes import GIB, MIB
from lorafront.trainables.memory_model import PARTS

MOST_RANKS = 8  # shown of each module set
SIDE_BY_SIDE = 4  # quantizations in a table: 80 columns are few
NOWHERE = "-"
HOURS = (
    "the time is an order of magnitude: early stopping needs less; starting trials, loading the base and, of small "
    "models, waiting for the launches of kernels come on top"
)


def headline(plan: Plan) -> str:
    """What was planned, in a line."""
    subject, shapes = plan.subject, plan.anchor.shapes
    size = subject.parameters
    parameters = f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.1f} M"  # noqa: PLR2004
    tokens = f"{shapes.tokens}" + (f" + {shapes.completion}" if shapes.completion else "")
    checkpointing = "on" if subject.training.gradient_checkpointing else "off"
    training = f"{subject.training.optimizer}, gradient checkpointing {checkpointing}"
    return f"{subject.name}: {parameters} parameters; batch {shapes.rows} x {tokens} tokens, {training}"


def tables(plan: Plan) -> Iterator[Table]:
    """What each needs, what that is made of, and what it fits on."""
    quantizations = _distinct(row.lora.quantization for row in plan.rows)
    for start in range(0, len(quantizations), SIDE_BY_SIDE):
        yield _needs(plan, quantizations[start : start + SIDE_BY_SIDE])
    yield _breakdown(plan, quantizations)
    yield _decision(plan)
    yield _tiers(plan, quantizations)


def lines(answer: Answer) -> list[str]:
    """What stands below the tables."""
    plan, total = answer.plan, len(answer.plan.subject.configurations)
    found = []
    if answer.hours is not None:
        counts = ", ".join(f"{count:,} on {name}" for name, count in plan.fitting.items())
        found.append(f"of {total:,} different discrete configurations fit: {counts}")
        if answer.broken:
            found.append(f"{answer.broken:,} of the {total:,} break a limit that is known before a trial runs")
        found.append(str(answer.hours))
        found.append(f"note: {HOURS}")
    return found + [f"note: {note}" for note in notes(plan)]


def notes(plan: Plan) -> list[str]:
    """What the numbers are, and what they are not."""
    beside = f"{CONTEXT // MIB} MiB of context (an estimate), several at once each for {MARGIN:.0%} more"
    return [
        "predicted tensors at the peak of a training step on CUDA, by formulas that no GPU has measured yet",
        f"what fits has room for {beside}; cards may offer less than their name says",
        *plan.subject.notes,
    ]


def as_json(answer: Answer) -> dict[str, Any]:
    """All of it; memory in GiB."""
    plan, anchor = answer.plan, answer.plan.anchor
    grown = limits(plan, anchor)
    found: dict[str, Any] = {
        "name": plan.subject.name,
        "parameters": plan.subject.parameters,
        "batch": asdict(anchor.shapes),
        "gradient_checkpointing": plan.subject.training.gradient_checkpointing,
        "configurations": len(plan.subject.configurations),
        "gpus": [
            {
                "gpu": gpu.name,
                "configurations_that_fit": plan.fitting[gpu.name],
                "largest": largest.label if (largest := plan.largest(plan.fitting_rows(gpu))) else None,
                "recommended": {"label": anchor.label, **_on(anchor, gpu.name, grown)},
            }
            for gpu in plan.gpus
        ],
        "rows": [_flat(plan, row) for row in plan.rows],
        "notes": notes(plan),
    }
    if answer.hours is not None:
        found["search"] = {**asdict(answer.hours), "break_a_limit": answer.broken}
    return found


def as_csv(plan: Plan) -> str:
    """A line per row; memory in GiB, columns of a GPU end in its name."""
    stream = io.StringIO()
    flat = []
    for row in plan.rows:
        cells = _flat(plan, row)
        parts, gpus = cells.pop("parts"), cells.pop("gpus")
        cells |= {f"{part}_gb": size for part, size in parts.items()}
        flat.append(cells | {f"{key}_{gpu}": value for gpu, fit in gpus.items() for key, value in fit.items()})
    writer = csv.DictWriter(stream, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _flat(plan: Plan, row: Row) -> dict[str, Any]:
    grown = limits(plan, row)
    return {
        "rank": row.lora.rank,
        "modules": row.lora.modules,
        "quantization": row.lora.quantization,
        "configurations": row.configurations,
        "peak_vram_gb": row.peak.total / GIB,
        "phase": row.peak.phase,
        "process_gb": row.need / GIB,
        "tier": row.tier,
        "parts": {name: size / GIB for name, size in row.peak.parts.items()},
        "gpus": {gpu.name: _on(row, gpu.name, grown) for gpu in plan.gpus},
    }


def _on(row: Row, gpu: str, grown: Mapping[str, Limits]) -> dict[str, int]:
    return {"at_once": row.at_once[gpu], **asdict(grown[gpu])}


def _needs(plan: Plan, quantizations: Sequence[str]) -> Table:
    """Peak by modules and rank down and quantization across, each with the smallest GPU that it fits."""
    unit, size = _unit(plan.rows)
    shown = _table(f"Peak memory ({unit}), and the smallest GPU that it fits")
    shown.add_column("modules", overflow="fold")
    shown.add_column("rank", justify="right", no_wrap=True)
    for quantization in quantizations:
        shown.add_column(quantization, justify="right", no_wrap=True)
        shown.add_column("", no_wrap=True)
    found: dict[tuple[str, int, str], Row] = {
        (row.lora.modules, row.lora.rank, row.lora.quantization): row for row in plan.rows
    }
    ranks = sorted({row.lora.rank for row in plan.rows})
    some = {ranks[index * (len(ranks) - 1) // (MOST_RANKS - 1)] for index in range(MOST_RANKS)}
    if len(ranks) > MOST_RANKS:
        shown.caption = f"{MOST_RANKS} of {len(ranks)} ranks; --csv has all"
    before = None
    for modules, rank in _distinct((row.lora.modules, row.lora.rank) for row in plan.rows):
        if len(ranks) > MOST_RANKS and rank not in some:
            continue
        cells: list[str] = []
        for quantization in quantizations:
            row = found.get((modules, rank, quantization))
            cells += [_number(row.peak.total / size), _smallest(row)] if row else ["", ""]
        shown.add_row("" if modules == before else modules, str(rank), *cells)
        before = modules
    return shown


def _smallest(row: Row) -> str:
    return next((name for name, trials in row.at_once.items() if trials), NOWHERE)


def _breakdown(plan: Plan, quantizations: Sequence[str]) -> Table:
    """Parts down and quantization across, of the recommended default."""
    anchor = plan.anchor.lora
    rows = {
        row.lora.quantization: row
        for row in plan.rows
        if (row.lora.rank, row.lora.modules) == (anchor.rank, anchor.modules)
    }
    unit, size = _unit(plan.rows)
    shown = _table(f"What r{anchor.rank} {anchor.modules} is made of ({unit})")
    shown.add_column("")
    there = [quantization for quantization in quantizations if quantization in rows]
    for quantization in there:
        shown.add_column(quantization, justify="right", no_wrap=True)
    for part in PARTS:
        shown.add_row(part, *(_number(rows[name].peak.parts[part] / size) for name in there))
    shown.add_row("peak", *(_number(rows[name].peak.total / size) for name in there), style="bold")
    return shown


def _decision(plan: Plan) -> Table:
    """A line per GPU."""
    anchor = plan.anchor
    grown = limits(plan, anchor)
    shown = _table("What fits on one GPU")
    batch, tokens = anchor.shapes.rows, anchor.shapes.tokens
    shown.caption = f"{anchor.label}: trials at once, batch at {tokens} tokens, length at batch {batch}"
    shown.add_column("GPU", justify="right", no_wrap=True)
    shown.add_column("fit", justify="right", no_wrap=True)
    shown.add_column("the largest that fits", overflow="fold")
    for name in ("at once", "batch", "length"):
        shown.add_column(name, justify="right", no_wrap=True)
    for gpu in plan.gpus:
        largest, limit = plan.largest(plan.fitting_rows(gpu)), grown[gpu.name]
        share = f"{plan.fitting[gpu.name] / len(plan.subject.configurations):.0%}"
        numbers = str(anchor.at_once[gpu.name]), _capped(limit.batch), str(limit.length)
        shown.add_row(gpu.name, share, largest.label if largest else NOWHERE, *numbers)
    return shown


def _tiers(plan: Plan, quantizations: Sequence[str]) -> Table:
    """How many rows of each quantization fall into each tier, and the largest of them."""
    shown = _table("Configurations by the memory that they need")
    shown.add_column("GPU memory", no_wrap=True)
    for quantization in quantizations:
        shown.add_column(quantization, justify="right", no_wrap=True)
    shown.add_column("the largest", overflow="fold")
    for tier in (*TIERS, OVER):
        inside = [row for row in plan.rows if row.tier == tier]
        counts = [sum(row.lora.quantization == name for row in inside) for name in quantizations]
        largest = plan.largest(inside)
        shown.add_row(tier, *(str(count) if count else NOWHERE for count in counts), largest.label if largest else "")
    return shown


def _capped(batch: int) -> str:
    return f"{batch}+" if batch == LARGEST_BATCH else str(batch)


def _unit(rows: Sequence[Row]) -> tuple[str, int]:
    """The unit in which the largest peak is a number of at least one."""
    return ("GiB", GIB) if max(row.peak.total for row in rows) >= GIB else ("MiB", MIB)


def _number(value: float) -> str:
    """Two decimals below 10, one below 100."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004


def _table(title: str) -> Table:
    """As wide as its title, which would be broken otherwise."""
    return Table(title=title, title_justify="left", caption_justify="left", min_width=len(title), **COMPACT)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
