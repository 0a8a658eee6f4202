"""The figures of a report, drawn by plotly in the reader's browser. Pure.

Colours are chosen to be read on white and on black.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from moocore import hypervolume

from lorafront.search.baseline import baseline_of
from lorafront.search.confirmation import Confirmation
from lorafront.search.confirmation_report import COMPARED, chance, with_interval
from lorafront.search.front import axes_of, front_of, values
from lorafront.search.judged import Confirmed
from lorafront.search.study_table import VRAM, StudyTable, TrialRecord
from lorafront.search.tables import number
from lorafront.spaces.lora import HYPERPARAMETERS
from lorafront.spaces.objectives import Objective, feasible, minimized

COLOURS = {
    "nf4": "#4c8dd6", "nf4_double": "#21a8bf", "fp4": "#9b7fd1", "int8": "#3fa65a", "bf16": "#ef8e2b",
    "fp16": "#a8a632", "fp32": "#9aa0a6",
}  # fmt: skip
FRONT, QUIET, GRID = "#e0533d", "#8f96a3", "rgba(128,133,145,0.25)"
SCALE = [[0.0, FRONT], [0.5, "#b58fd8"], [1.0, "#4c8dd6"]]  # from the best to the worst
FEW = 8  # different numbers, each with a tick of its own
PARTIAL = "not at full fidelity"
FEW_DECADES = 4
LOG_FROM = 4  # an axis that spans more than this ratio is logarithmic


def front_figure(table: StudyTable) -> go.Figure | None:
    """Every trial at full fidelity and the front, quality over cost; None before the first."""
    horizontal, vertical = axes_of(table.search.objective_list)
    shown = [trial for trial in table.complete if _finite(values(trial, [horizontal, vertical]))]
    if not shown:
        return None
    members = front_of(table)
    on_front = {trial.number for trial in members}
    figure = _figure(_title(horizontal), _title(vertical))
    for kind, colour in COLOURS.items():
        trials = [trial for trial in shown if trial.lora.quantization == kind and trial.number not in on_front]
        if trials:
            figure.add_trace(_points(table, trials, horizontal, vertical, kind, {"color": colour, "opacity": 0.55}))
    several = len(table.search.objective_list) > 2  # noqa: PLR2004  # then the front is no line in the plane
    sizes = {"size": 11, "line": {"width": 2, "color": FRONT}}
    own = [COLOURS[trial.lora.quantization] for trial in members]
    points = _points(table, members, horizontal, vertical, "front", {**sizes, "color": own})
    shape = "hv" if horizontal.direction == "minimize" else "vh"
    figure.add_trace(
        points.update(mode="markers" if several else "lines+markers", line={"color": FRONT, "shape": shape})
    )
    baseline = baseline_of(table)
    if baseline is not None and baseline in shown:
        star = {"symbol": "star", "size": 16, "color": COLOURS[baseline.lora.quantization], "line": {"width": 1}}
        figure.add_trace(_points(table, [baseline], horizontal, vertical, "baseline", star))
    _scale(figure.update_yaxes, [values(trial, [vertical])[0] for trial in shown])
    return figure


def confirmed_figure(found: Confirmation) -> go.Figure:
    """Means over seeds with their intervals, and from where the search had estimated them."""
    horizontal, vertical = axes_of(found.table.search.objective_list)
    figure = _figure(_title(horizontal), _title(vertical))
    moved: dict[str, list[float | None]] = {"x": [], "y": []}
    for entry in found.entries:
        for axis, objective in (("x", horizontal), ("y", vertical)):
            moved[axis] += [values(entry.trial, [objective])[0], entry.values[objective.name], None]
    figure.add_trace(
        go.Scatter(
            x=moved["x"], y=moved["y"], mode="lines+markers", line={"color": QUIET, "width": 1, "dash": "dot"},
            marker={"size": 5}, name="as the search had it", hoverinfo="skip", opacity=0.6,
        )
    )  # fmt: skip
    groups = (("worth choosing", found.kept, FRONT), ("as good as one of these", found.needless, COLOURS["nf4"]))
    for name, entries, colour in (*groups, ("beaten", found.beaten, QUIET)):
        if entries:
            figure.add_trace(_with_bars(entries, horizontal, vertical, name, colour))
    for one in found.compared:
        if one.entry is not None:
            trace = _with_bars([one.entry], horizontal, vertical, COMPARED[one.name], QUIET)
            trace.update(marker={"symbol": "star", "size": 15}, text=f"<b>{COMPARED[one.name]}</b><br>{one.lora.label}")
            figure.add_trace(trace)
    shown = [*found.entries, *(one.entry for one in found.compared if one.entry is not None)]
    _scale(figure.update_yaxes, [entry.values[vertical.name] for entry in shown])
    return figure


def _with_bars(
    entries: Sequence[Confirmed], horizontal: Objective, vertical: Objective, name: str, colour: str
) -> go.Scatter:
    middle = [entry.values[vertical.name] for entry in entries]
    ends = [entry.intervals[vertical.name] for entry in entries]
    above, below = (
        [abs(end[side] - value) if math.isfinite(end[side]) else 0.0 for end, value in zip(ends, middle, strict=True)]
        for side in (1, 0)
    )
    return go.Scatter(
        x=[entry.values[horizontal.name] for entry in entries], y=middle, mode="markers", name=name,
        error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour},
        marker={"color": colour, "size": 10}, customdata=[entry.trial.number for entry in entries],
        text=[
            f"<b>trial {entry.trial.number}</b><br>{escape(entry.trial.lora.label)}<br>{entry.seeds} seeds: "
            f"{with_interval(entry, vertical)}<br>on the front: {chance(entry.probability)}"
            for entry in entries
        ],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def curves_figure(table: StudyTable) -> go.Figure | None:
    """Quality at each rung, in three groups; None where trials have at most one rung."""
    quality = axes_of(table.search.objective_list)[1]
    on_front = {trial.number for trial in front_of(table)}
    groups: dict[str, list[TrialRecord]] = {PARTIAL: [], "full fidelity": [], "front": []}
    for trial in table.trials:
        known = "front" if trial.number in on_front else "full fidelity" if trial.state == "COMPLETE" else PARTIAL
        if len(trial.rungs) > 0:
            groups[known].append(trial)
    if max((len(trial.rungs) for trial in table.trials), default=0) <= 1:
        return None
    figure = _figure("training rows", _title(quality))
    seen: list[float] = []
    for (name, trials), colour in zip(groups.items(), (QUIET, COLOURS["nf4"], FRONT), strict=True):
        x: list[float | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for trial in trials:
            found = [(report.rows, report.measurements.get(quality.name)) for report in trial.rungs]
            for rows, value in [*found, (None, None)]:  # the gap between two lines
                x.append(rows)
                y.append(value)
                text.append(f"trial {trial.number}: {escape(trial.lora.label)}")
        if trials:
            figure.add_trace(
                go.Scatter(
                    x=x, y=y, text=text, name=name, mode="lines+markers", line={"color": colour}, marker={"size": 5},
                    opacity=0.5 if name == PARTIAL else 0.9,
                    hovertemplate="%{text}<br>%{x} rows: %{y}<extra></extra>",
                )
            )  # fmt: skip
            seen += [value for value in y if value is not None]
    _scale(figure.update_yaxes, seen)
    return figure


def hypervolume_figure(table: StudyTable) -> go.Figure | None:
    """What part of its hypervolume the search had reached after how many rows; None without a front, or rows."""
    found = hypervolume_over_rows(table)
    if not found or not found[-1][0]:  # nobody knows how long they trained
        return None
    figure = _figure("rows that all trials have trained on", "part of the final hypervolume")
    rows, shares = zip(*found, strict=True)
    figure.add_trace(
        go.Scatter(x=rows, y=shares, mode="lines", line={"color": FRONT, "shape": "hv"}, name="hypervolume")
    )
    return figure


def hypervolume_over_rows(table: StudyTable) -> list[tuple[int, float]]:
    """(rows trained by all trials that had ended, share of the final hypervolume), in the order in which they ended.

    The reference point lies beyond the worst value of each objective by a tenth of its range, so that the ends of the
    front count as well.
    """
    objectives = table.search.objective_list
    ended = sorted((trial for trial in table.trials if trial.ended), key=lambda trial: (trial.ended, trial.number))
    points = {
        trial.number: minimized(trial.measurements, objectives)
        for trial in ended
        if trial.state == "COMPLETE" and feasible(table.search.limits, trial.measurements)
    }
    points = {n: point for n, point in points.items() if len(point) == len(objectives) and _finite(point)}
    if not points:
        return []
    reached = np.array(list(points.values()))
    worst, span = reached.max(axis=0), np.ptp(reached, axis=0)
    reference = worst + np.where(span > 0, 0.1 * span, 1.0)
    whole = hypervolume(reached, ref=reference)
    if whole <= 0:
        return []
    rows, held, found = 0, list[list[float]](), list[tuple[int, float]]()
    for trial in ended:
        rows += trial.last.rows if trial.last else 0
        if trial.number in points:
            held.append(points[trial.number])
        found.append((rows, float(hypervolume(np.array(held), ref=reference)) / whole if held else 0.0))
    return found


def parallel_figure(table: StudyTable) -> go.Figure | None:
    """Trials at full fidelity as lines through what varies and what was measured; None for fewer than two."""
    objectives = table.search.objective_list
    trials = [trial for trial in table.complete if _finite(values(trial, objectives))]
    if len(trials) <= 1:
        return None
    axes = []
    for name in HYPERPARAMETERS:
        chosen = [getattr(trial.lora, name) for trial in trials]
        if len(set(map(str, chosen))) > 1:
            axes.append({"label": name, **_axis(chosen)})
    for objective in objectives:
        measured = [values(trial, [objective])[0] for trial in trials]
        axes.append({"label": objective.label, **_axis(measured)})
    quality = [minimized(trial.measurements, [axes_of(objectives)[1]])[0] for trial in trials]
    colours = [math.log(v) for v in quality] if _spans(quality) else quality
    figure = go.Figure(go.Parcoords(dimensions=axes, line={"color": colours, "colorscale": SCALE}))
    return figure.update_layout(**_layout()).update_layout(margin={"l": 80, "r": 80})


def memory_figure(table: StudyTable) -> go.Figure | None:
    """Predicted against measured peak VRAM; None where nothing has both."""
    both = [
        (trial, trial.measurements[f"predicted_{VRAM}"], trial.measurements[VRAM])
        for trial in table.trials
        if all(isinstance(trial.measurements.get(name), (int, float)) for name in (f"predicted_{VRAM}", VRAM))
        and trial.measurements.get("peak_vram_source") != "predicted"
    ]
    if not both:
        return None
    figure = _figure("predicted peak VRAM (GiB)", "measured peak VRAM (GiB)")
    ends = [min(min(p, m) for _, p, m in both), max(max(p, m) for _, p, m in both)]
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line={"color": QUIET, "dash": "dot"}, name="equal"))
    text = [f"trial {trial.number}: {escape(trial.lora.label)}" for trial, _, _ in both]
    figure.add_trace(
        go.Scatter(
            x=[p for _, p, _ in both], y=[m for _, _, m in both], text=text, mode="markers", name="trials",
            marker={"color": COLOURS["nf4"]},
            hovertemplate="%{text}<br>%{x:.4g} predicted, %{y:.4g} measured<extra></extra>",
        )
    )  # fmt: skip
    return figure


def importance_figure(shares: dict[str, dict[str, float]]) -> go.Figure | None:
    """Bars of the share of each hyperparameter in each objective; None where there are none.

    Args:
        shares: by label of the objective, then by hyperparameter.
    """
    if not any(shares.values()):
        return None
    figure = _figure("share of what can be explained", "")
    for (label, found), colour in zip(shares.items(), (FRONT, *COLOURS.values()), strict=False):
        ordered = sorted(found.items(), key=lambda pair: pair[1])
        figure.add_trace(
            go.Bar(
                x=[share for _, share in ordered], y=[name for name, _ in ordered], orientation="h", name=label,
                marker={"color": colour},
            )
        )  # fmt: skip
    return figure


def _points(
    table: StudyTable,
    trials: Sequence[TrialRecord],
    horizontal: Objective,
    vertical: Objective,
    name: str,
    marker: dict[str, Any],
) -> go.Scatter:
    ordered = sorted(trials, key=lambda trial: values(trial, [horizontal, vertical]))
    if isinstance(marker.get("color"), list):
        by_number = dict(zip((trial.number for trial in trials), marker["color"], strict=True))
        marker = {**marker, "color": [by_number[trial.number] for trial in ordered]}
    return go.Scatter(
        x=[values(trial, [horizontal])[0] for trial in ordered],
        y=[values(trial, [vertical])[0] for trial in ordered],
        text=[_hover(table, trial) for trial in ordered],
        customdata=[trial.number for trial in ordered],
        name=name,
        mode="markers",
        marker=marker,
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(table: StudyTable, trial: TrialRecord) -> str:
    lora = trial.lora
    measured = [
        f"{objective.label} {number(value, objective)} {objective.unit}".rstrip()
        for objective, value in zip(
            table.search.objective_list, values(trial, table.search.objective_list), strict=True
        )
    ]
    said = [f"<b>trial {trial.number}</b>", escape(lora.label)]
    said += [f"lr {lora.learning_rate:.3g}, dropout {lora.dropout:.3g}, {escape(lora.scheduler)}", *measured]
    return "<br>".join(said)


def _axis(chosen: Sequence[Any]) -> dict[str, Any]:
    """Values of one axis of parallel coordinates: words, few numbers and logarithmic scales with ticks of their own."""
    if any(isinstance(value, (str, bool)) for value in chosen):
        words = sorted(set(map(str, chosen)))
        return {"values": [words.index(str(v)) for v in chosen], "tickvals": list(range(len(words))), "ticktext": words}
    different = sorted(set(chosen))
    few = different if len(different) <= FEW else []
    if not _spans(chosen):
        return {"values": list(chosen), **({"tickvals": few} if few else {})}
    low, high = different[0], different[-1]
    ticks = few or [low, *(tick for tick in round_numbers(low, high) if 1.2 * low < tick < high / 1.2), high]
    return {
        "values": [math.log10(value) for value in chosen],
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [f"{tick:.3g}" for tick in ticks],
    }


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`, both positive; over many decades fewer, a dozen at most."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if last - first <= FEW_DECADES else (1,)
    powers = range(first, last + 1, max(1, (last - first) // 10))
    return [value for power in powers for digit in digits if low <= (value := float(f"{digit}e{power}")) <= high]


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(**_layout())
    figure.update_xaxes(title=x, gridcolor=GRID, zeroline=False, linecolor=QUIET)
    figure.update_yaxes(title=y, gridcolor=GRID, zeroline=False, linecolor=QUIET)
    return figure


def _layout() -> dict[str, Any]:
    clear = "rgba(0,0,0,0)"
    return {
        "paper_bgcolor": clear, "plot_bgcolor": clear, "font": {"color": QUIET, "size": 13}, "height": 460,
        "margin": {"l": 60, "r": 20, "t": 40, "b": 55}, "legend": {"orientation": "h", "y": 1.1},
    }  # fmt: skip


def _title(objective: Objective) -> str:
    return objective.label + (f" ({objective.unit})" if objective.unit else "")


def _finite(numbers: Iterable[float]) -> bool:
    return all(map(math.isfinite, numbers))


def _spans(numbers: Sequence[float]) -> bool:
    return bool(numbers) and min(numbers) > 0 and max(numbers) > LOG_FROM * min(numbers)


def _scale(update: Any, numbers: Sequence[float]) -> None:
    finite = [value for value in numbers if math.isfinite(value)]
    if _spans(finite):
        ticks = round_numbers(min(finite) / 2, min(2 * max(finite), 1e300))
        update(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
