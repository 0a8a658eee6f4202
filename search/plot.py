"""The front as a picture: every trial at full fidelity, the front as a staircase, the bare base as a line."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorafront.search.baseline import baseline_of
from lorafront.search.front import axes_of, front_of, values
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.search.tables import number
from lorafront.spaces.objectives import Objective

mpl.use("Agg")
TEXT_HEIGHT, TEXT_WIDTH = 0.045, 0.24  # of a label, as shares of the axes
LOG_FROM = 4  # a vertical axis that spans more than this ratio is logarithmic
INK, QUIET, LINE = "#1a1a2e", "#8a8f98", "#d04a35"
COLOURS = {
    "nf4": "#1f77b4", "nf4_double": "#17becf", "fp4": "#9467bd", "int8": "#2ca02c", "bf16": "#ff7f0e",
    "fp16": "#bcbd22", "fp32": "#7f7f7f",
}  # fmt: skip


def plot_front(table: StudyTable, path: Path) -> None:
    """Write a PNG: the first objective that is a quality over the first one that is a cost."""
    objectives = table.search.objective_list
    horizontal, vertical = axes_of(objectives)
    members = front_of(table)
    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    _trials(axes, table, members, horizontal, vertical)
    if len(objectives) == 2:  # noqa: PLR2004  # with more, the front is no line in the plane
        _staircase(axes, members, horizontal, vertical)
    own = baseline_of(table)
    if own is not None and own.state == "COMPLETE":
        x, y = values(own, [horizontal, vertical])
        axes.scatter([x], [y], marker="*", s=190, color=INK, zorder=5, label="baseline")
    _decorate(axes, table, horizontal, vertical)
    _labels(axes, members, horizontal, vertical)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.png")
    figure.savefig(aside)
    aside.replace(path)


def _trials(
    axes: Axes, table: StudyTable, members: list[TrialRecord], horizontal: Objective, vertical: Objective
) -> None:
    on_front = {trial.number for trial in members}
    kinds = sorted({trial.lora.quantization for trial in table.complete if trial.lora}, key=list(COLOURS).index)
    for kind in kinds:
        has_member = any(trial.lora.quantization == kind for trial in members)
        for chosen in (False, True):
            trials = [
                trial for trial in table.complete
                if trial.lora.quantization == kind and (trial.number in on_front) == chosen
            ]  # fmt: skip
            points = [values(trial, [horizontal, vertical]) for trial in trials]
            axes.scatter(
                [x for x, _ in points], [y for _, y in points], color=COLOURS[kind], s=64 if chosen else 26,
                alpha=1.0 if chosen else 0.45, edgecolors=INK if chosen else "none", linewidths=1.0,
                zorder=4 if chosen else 2, label=kind if chosen == has_member else None,
            )  # fmt: skip


def _staircase(axes: Axes, members: list[TrialRecord], horizontal: Objective, vertical: Objective) -> None:
    points = sorted(values(trial, [horizontal, vertical]) for trial in members)
    where: Literal["pre", "post"] = "pre" if horizontal.direction == "maximize" else "post"
    if points:
        axes.step([x for x, _ in points], [y for _, y in points], where=where, color=LINE, linewidth=1.6, zorder=3)


def _labels(axes: Axes, members: list[TrialRecord], horizontal: Objective, vertical: Objective) -> None:
    """Name members, right of their points; of crowded ones only the first, the table names the rest."""
    taken: list[tuple[float, float]] = []
    for trial in sorted(members, key=lambda member: values(member, [horizontal, vertical])):
        x, y = values(trial, [horizontal, vertical])
        across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        crowded = any(abs(up - v) < TEXT_HEIGHT and abs(across - u) < TEXT_WIDTH for u, v in taken)
        if crowded:
            continue
        taken.append((across, up))
        axes.annotate(
            f"{trial.number}: {trial.lora.label}",
            (x, y),
            xytext=(7, 5) if across < 1 - TEXT_WIDTH else (-7, 7),
            textcoords="offset points",
            ha="left" if across < 1 - TEXT_WIDTH else "right",
            fontsize=7.5,
            color=INK,
            zorder=5,
        )


def _decorate(axes: Axes, table: StudyTable, horizontal: Objective, vertical: Objective) -> None:
    for objective, name in ((horizontal, "x"), (vertical, "y")):
        text = objective.label + (f" ({objective.unit})" if objective.unit else "")
        getattr(axes, f"set_{name}label")(text)
    for limit in table.search.limits:
        if limit.name == horizontal.name:
            axes.axvline(limit.bound, color=QUIET, linestyle=":", linewidth=1)
        if limit.name == vertical.name:
            axes.axhline(limit.bound, color=QUIET, linestyle=":", linewidth=1)
    subtitle = f"{len(table.complete)} trials at full fidelity"
    nothing = [measured[vertical.name] for measured in table.references.values() if vertical.name in measured]
    if nothing:
        best = max(nothing) if vertical.direction == "maximize" else min(nothing)
        name = next(name for name, measured in table.references.items() if measured.get(vertical.name) == best)
        subtitle += f"; {name}: {vertical.label} {number(best, vertical)}"
    axes.set_title(f"{table.search.name}: Pareto front\n", loc="left", fontsize=12, color=INK, fontweight="bold")
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9, color=QUIET)
    shown = [v for trial in table.complete if math.isfinite(v := values(trial, [vertical])[0])]
    if shown and min(shown) > 0 and max(shown) > LOG_FROM * min(shown):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if str(x)[0] in "25" else "")
    axes.grid(visible=True, color="#e6e8eb", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.12, y=0.1)
    axes.legend(title="base stored as", frameon=False, fontsize=8.5, title_fontsize=8.5, loc="best")
