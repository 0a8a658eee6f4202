"""A plan as a picture: a bar for each module set and quantization, stacked by what the memory is for."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorafront.search.placement import Devices
from lorafront.search.plan import Plan, Row, room
from lorafront.search.plan_report import headline, notes
from lorafront.search.plot import INK, QUIET
from lorafront.spaces.sizes import GIB, MIB
from lorafront.trainables.memory_model import PARTS

mpl.use("Agg")
COLOURS = {
    "base": "#4c5b7a", "adapters": "#d04a35", "gradients": "#e8866f", "optimizer": "#f2b84b", "activations": "#4a9d8e",
    "logits": "#8ecae6", "temporary": "#b8bcc4",
}  # fmt: skip
OTHERS = ("#9467bd", "#17becf")  # of parts that have no colour of their own
MOST_BARS = 24  # in a picture that can be read
BAR_HEIGHT, AROUND = 0.26, 2.4  # inches
APART = 0.07  # of the axis, between the names of two GPUs
BEYOND = 1.25  # a GPU that is larger than the largest bar by more is not drawn


def plot_plan(plan: Plan, path: Path) -> None:
    """Write a PNG of the rows at the recommended rank, GPUs as vertical lines."""
    rows = _chosen(plan)
    figure = Figure(figsize=(10, AROUND + BAR_HEIGHT * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    unit, size = ("GiB", GIB) if max(row.peak.total for row in rows) >= GIB else ("MiB", MIB)
    _bars(axes, rows, size)
    _gpus(axes, plan.gpus, max(row.peak.total for row in rows), size)
    axes.set_xlabel(f"peak memory ({unit})\n{notes(plan)[0]}\n{notes(plan)[1]}", fontsize=8.5)
    _decorate(axes, plan, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.png")
    figure.savefig(aside)
    aside.replace(path)


def _chosen(plan: Plan) -> list[Row]:
    """Rows at the rank of the recommended default; of very many those with its modules."""
    anchor = plan.anchor.lora
    rows = [row for row in plan.rows if row.lora.rank == anchor.rank]
    if len(rows) > MOST_BARS:
        rows = [row for row in rows if row.lora.modules == anchor.modules]
    return rows


def _bars(axes: Axes, rows: list[Row], size: int) -> None:
    names = [f"{row.lora.modules}  {row.lora.quantization}" for row in rows]
    left = [0.0] * len(rows)
    spare = iter(OTHERS)
    for part in PARTS:
        widths = [row.peak.parts[part] / size for row in rows]
        axes.barh(names, widths, left=left, height=0.72, color=COLOURS.get(part) or next(spare), label=part, zorder=2)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for name, end in zip(names, left, strict=True):
        axes.annotate(
            f"{end:.3g}", (end, name), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip


def _gpus(axes: Axes, gpus: tuple[Devices, ...], longest: int, size: int) -> None:
    """Lines where the room of a GPU ends; of those beyond the bars none, or the first where none crosses them."""
    ends = [(gpu.name, room(gpu)) for gpu in gpus]
    inside = [(name, end) for name, end in ends if 0 < end <= BEYOND * longest]
    right = max([longest, *(end for _, end in inside)]) * 1.08
    axes.set_xlim(0, right / size)
    before = -right  # the last name in the lower line
    for name, end in inside:
        axes.axvline(end / size, color=INK, linestyle="--", linewidth=1, zorder=3)
        above = 14 if end - before < APART * right else 3  # two names that would touch stand above each other
        axes.annotate(
            name, (end / size, 1), xycoords=("data", "axes fraction"), xytext=(0, above), textcoords="offset points",
            ha="center", fontsize=8.5, color=INK, fontweight="bold",
        )  # fmt: skip
        before = end if above == 3 else before  # noqa: PLR2004


def _decorate(axes: Axes, plan: Plan, rows: list[Row]) -> None:
    axes.invert_yaxis()
    axes.set_title(
        f"{headline(plan)}; rank {rows[0].lora.rank}\n", loc="left", fontsize=10, color=INK, fontweight="bold", pad=18
    )
    axes.tick_params(axis="y", labelsize=8.5, length=0)
    axes.grid(visible=True, axis="x", color="#e6e8eb", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.xaxis.label.set_color(QUIET)
    axes.figure.legend(loc="outside upper right", ncols=len(PARTS), frameon=False, fontsize=8.5)
