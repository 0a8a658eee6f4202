"""A study as text: tables for the terminal, CSV, Markdown. Pure apart from rich's drawing."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lorafront.search import budget
from lorafront.search.baseline import IN_PERCENT, baseline_of, differences, standing
from lorafront.search.front import axes_of, front_of, values
from lorafront.search.paths import RootPaths
from lorafront.search.rungs import rank_correlations
from lorafront.search.study_table import StudyTable, TrialRecord, read_study
from lorafront.spaces.errors import StateUnreadable
from lorafront.spaces.lora import HYPERPARAMETERS, LoraConfiguration
from lorafront.spaces.objectives import Objective, minimized

OWN_COLUMN = {"dropout", "learning_rate"}  # others that vary stand beside the label: 80 columns are few
MOST_BESIDE = 2  # objectives
MOST_FAILURES = 5  # shown one by one
MOST_TRIALS = 200  # of the newest; drawing 10,000 rows takes rich five seconds, and nobody reads them
LABELLED = {"rank", "alpha", "modules", "quantization"}  # what a configuration's label says already
COMPACT: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}  # 80 columns are few
SHORT = {
    "dropout": "drop",
    "learning_rate": "lr",
    "gradient_accumulation": "accum",
    "batch_size": "batch",
    "weight_decay": "decay",
    "trainable_params": "params",
    "train_seconds": "seconds",
    "adapter_mb": "adapter MB",
    "peak_vram_gb": "VRAM GiB",
    "tokens_per_second": "tokens/s",
}


def front_table(table: StudyTable, members: Sequence[TrialRecord]) -> Table:
    """The front for a terminal of 80 columns: parameters that are the same everywhere go into the caption."""
    objectives = table.search.objective_list
    varying, constant = _parameters([trial.lora for trial in table.complete])
    # A column each where there is room for it.
    columns = [name for name in varying if name in OWN_COLUMN and len(objectives) <= MOST_BESIDE]
    beside = [name for name in varying if name not in columns]
    shown = Table(title=f"Pareto front of {table.search.name}", title_justify="left", caption_justify="left", **COMPACT)
    shown.add_column("trial", justify="right", no_wrap=True)
    shown.add_column("configuration", overflow="fold", min_width=14)
    for name in columns:
        shown.add_column(SHORT.get(name, name), justify="right", no_wrap=True)
    for objective in objectives:
        shown.add_column(heading(objective, len(objectives)), justify="right", style="bold", no_wrap=True)
    baseline = _measured_baseline(table)
    if baseline is not None:
        shown.add_column("to baseline", justify="right")
    for trial in members:
        run_as = [f"as {trial.execution.label}"] if trial.execution else []
        label = " ".join([trial.lora.label, *(f"{SHORT.get(n, n)} {_cell(trial.lora, n)}" for n in beside), *run_as])
        numbers = [
            number(value, objective) for value, objective in zip(values(trial, objectives), objectives, strict=True)
        ]
        numbers += [] if baseline is None else [to_baseline(trial, baseline, objectives)]
        shown.add_row(str(trial.number), label, *(_cell(trial.lora, name) for name in columns), *numbers)
    if constant:
        shown.caption = "everywhere: " + ", ".join(f"{SHORT.get(k, k)} {v}" for k, v in constant.items())
    return shown


def _parameters(configurations: Sequence[LoraConfiguration]) -> tuple[list[str], dict[str, str]]:
    """(names that vary, the others with their one value)."""
    varying: list[str] = []
    constant: dict[str, str] = {}
    for name in HYPERPARAMETERS:
        if name in LABELLED:
            continue
        if len({getattr(lora, name) for lora in configurations}) > 1:
            varying.append(name)
        elif configurations:
            constant[name] = _cell(configurations[0], name)
    return varying, constant


def _cell(lora: LoraConfiguration, name: str) -> str:
    value = getattr(lora, name, "")
    return (
        f"{value:.2g}"
        if isinstance(value, float) and value < 1
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def number(value: float, objective: Objective) -> str:
    """A value of an objective with the digits that matter."""
    if objective.quality:
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"  # noqa: PLR2004  # four or five digits either way
    return f"{value:,.0f}" if objective.name == "trainable_params" else f"{value:.4g}"


def front_csv(table: StudyTable, members: Sequence[TrialRecord] | None = None) -> str:
    """The front as CSV: trial, parameters, objectives. Text that a spreadsheet would run is quoted."""
    objectives = table.search.objective_list
    chosen = front_of(table) if members is None else members
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fields = HYPERPARAMETERS
    writer.writerow(["trial", *fields, *(objective.name for objective in objectives)])
    for trial in chosen:
        params = trial.lora.model_dump(mode="json")
        writer.writerow([trial.number, *(_inert(params.get(name)) for name in fields), *values(trial, objectives)])
    return stream.getvalue()


def _inert(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


def summary(table: StudyTable, *, markdown: bool = False) -> str:
    """What was searched and what came out, in a few lines."""
    members = front_of(table)
    objectives = table.search.objective_list
    ends = Counter(trial.outcome for trial in table.counted)
    model, data = short(table.search.model.name), short(table.search.data.path)
    spent = budget.shown(table.search.budget, table.spent)
    lines = [f"{table.search.name}: {spent}; {model} on {data}"]
    lines += [f"{count} x {outcome.value}" for outcome, count in ends.most_common() if outcome is not None]
    lines += [*reference_lines(table), *baseline_lines(table)]
    lines += correlation_lines(table)
    lines.append(f"front: {len(members)} configuration{'' if len(members) == 1 else 's'}")
    for trial in members:
        lines.append(f"trial {trial.number}: {trial.lora.label} ({measured_text(trial, objectives)})")
    if members and table.search.imported is None:
        lines.append(f"export: lorafront export {table.search.name} --out DIR")
    return "\n".join(f"- {line}" for line in lines) if markdown else "\n".join(lines)


def failure_lines(table: StudyTable) -> list[str]:
    """What happened to the trials that failed, a line each; the first few."""
    failed = [trial for trial in table.counted if trial.outcome is not None and trial.outcome.is_failure]
    lines = []
    for trial in failed[:MOST_FAILURES]:
        said = trial.result.error.strip().splitlines()[-1:] if trial.result else []
        lines.append(
            f"trial {trial.number}: {trial.outcome.value if trial.outcome else ''}" + "".join(f": {s}" for s in said)
        )
    if len(failed) > MOST_FAILURES:
        lines.append(f"and {len(failed) - MOST_FAILURES} more that failed")
    return lines


def reference_lines(table: StudyTable) -> list[str]:
    """What doing nothing measures, in the objectives of the search; one line each."""
    lines = []
    for name, measured in table.references.items():
        shown = [
            f"{objective.label} {number(measured[objective.name], objective)}"
            for objective in table.search.objective_list
            if objective.name in measured
        ]
        if shown:
            lines.append(f"{name}: {', '.join(shown)}")
    return lines


def baseline_lines(table: StudyTable) -> list[str]:
    """Where the user's own recipe stands, a line; nothing where the search has none."""
    if table.search.baseline is None:
        return []
    found, trial = standing(table), baseline_of(table)
    if trial is None:
        return ["baseline: not begun"]
    if found is None:
        ended = trial.outcome.value if trial.outcome else trial.state.lower()
        return [f"baseline trial {trial.number}: {ended}; nothing is compared with it"]
    objectives = table.search.objective_list
    two = len(objectives) == 2  # noqa: PLR2004  # for which there are words
    every, some = ("both", "one and equal in the other") if two else ("all", "some and equal in the rest")
    said = [f"beaten in {every} by {_trials(found.beaten)}"] if found.beaten else []
    said += [f"beaten in {some} by {_trials(found.matched)}"] if found.matched else []
    said += [f"breaks a limit: {found.broken}"] if found.broken else []
    said += ["on the front"] if found.on_front else [] if said else ["nobody beats it"]
    return [f"baseline trial {trial.number}: {measured_text(trial, objectives)}; {'; '.join(said)}"]


def _trials(numbers: Sequence[int]) -> str:
    return f"trial{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def measured_text(trial: TrialRecord, objectives: Sequence[Objective]) -> str:
    """The objectives of a trial with their names and units."""
    pairs = zip(values(trial, objectives), objectives, strict=True)
    return ", ".join(f"{o.label} {number(value, o)} {o.unit}".rstrip() for value, o in pairs)


def to_baseline(trial: TrialRecord, baseline: TrialRecord, objectives: Sequence[Objective]) -> str:
    """What a trial has more than the baseline of the first quality and the first cost."""
    if trial.number == baseline.number:
        return "is it"
    cost, quality = axes_of(objectives)
    more = differences(trial, baseline, (quality, cost))
    return ", ".join(
        f"{more[o.name]:+.1f}%" if o.name in IN_PERCENT else f"{more[o.name]:+.2g}"
        for o in (quality, cost)
        if o.name in more
    )


def _measured_baseline(table: StudyTable) -> TrialRecord | None:
    found = standing(table)
    return None if found is None else found.trial


def correlation_lines(table: StudyTable) -> list[str]:
    """How far the order of the trials at each rung is their order at the end; nothing where few came so far."""
    first = table.search.objective_list[:1]
    curves = [
        {report.rows: found[0] for report in trial.rungs if (found := minimized(report.measurements, first))}
        for trial in table.complete
    ]
    shown = [f"{value:.2f} at {rows} rows" for rows, value in rank_correlations(curves).items()]
    return [f"rank correlation with the end ({len(curves)} trials): {', '.join(shown)}"] if shown else []


def short(name: str) -> str:
    """The last part of an absolute path; other names as they are."""
    return Path(name).name if Path(name).is_absolute() else name


def trials_table(table: StudyTable, *, driven: bool = True) -> Table:
    """Every trial and where it stands; of very many the front, those that run, and the newest.

    Without a driver, trials that have not ended are paused.
    """
    objectives = table.search.objective_list
    shown = Table(title=f"Trials of {table.search.name}", title_justify="left", caption_justify="left", **COMPACT)
    trial_columns(shown, objectives)
    members = {trial.number for trial in front_of(table)}
    baseline = baseline_of(table)
    kept = table.trials
    if len(table.trials) > MOST_TRIALS:
        always = members | {trial.number for trial in (*table.running, *([baseline] if baseline else []))}
        newest = {trial.number for trial in table.trials[-MOST_TRIALS:]}
        kept = tuple(trial for trial in table.trials if trial.number in always | newest)
        shown.caption = f"{len(table.trials) - len(kept):,} older trials are left out; --json has all"
    for trial in kept:
        unended = trial.state.lower() if driven or trial.state != "RUNNING" else "paused"
        state = "front" if trial.number in members else trial.outcome.stored if trial.outcome else unended
        label = f"baseline: {trial.lora.label}" if trial is baseline else trial.lora.label
        shown.add_row(
            str(trial.number), label, str(trial.last.rows if trial.last else 0),
            *cells(trial.measurements, objectives), state.replace("_", " "),
        )  # fmt: skip
    return shown


def trial_rows(table: StudyTable) -> list[dict[str, Any]]:
    """Every trial with all that is known of it, as `status --json` prints it."""
    baseline = baseline_of(table)
    return [
        {
            "trial": trial.number,
            "state": trial.state,
            "outcome": trial.outcome.stored if trial.outcome else None,
            "params": trial.lora.model_dump(mode="json"),
            "rows": trial.last.rows if trial.last else 0,
            "measurements": trial.measurements,
            "error": trial.result.error if trial.result else "",
            **({"baseline": True} if trial is baseline else {}),
        }
        for trial in table.trials
    ]


def search_rows(root: RootPaths) -> list[dict[str, Any]]:
    """Every search under a root with what came of it."""
    rows: list[dict[str, Any]] = []
    for name in root.names():
        try:
            table = read_study(root.search(name).study_db)
        except StateUnreadable:  # said in full by `status`; the others are listed all the same
            rows.append({"name": name, "trials": "unreadable", "budget": "", "running": "", "front": "", "model": ""})
            continue
        rows.append(
            {
                "name": name,
                "trials": len(table.counted),
                "budget": table.search.budget.trials,
                "running": len(table.running),
                "front": len(front_of(table)),
                "model": short(table.search.model.name),
            }
        )
    return rows


def plain_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A column for each key, a line for each row."""
    shown = Table(**COMPACT)
    for key in rows[0]:
        shown.add_column(key, overflow="fold")
    for row in rows:
        shown.add_row(*(str(value) for value in row.values()))
    return shown


def trial_columns(shown: Table, objectives: Sequence[Objective]) -> None:
    """Columns of a table of trials in any state."""
    shown.add_column("trial", justify="right", no_wrap=True)
    shown.add_column("configuration", overflow="fold", min_width=14)
    shown.add_column("rows", justify="right", no_wrap=True)
    for objective in objectives:
        shown.add_column(heading(objective, len(objectives)), justify="right", no_wrap=True)
    shown.add_column("state", no_wrap=len(objectives) > MOST_BESIDE)


def heading(objective: Objective, several: int) -> str:
    """Of a column; its words stand below each other where there are several objectives."""
    words = SHORT.get(objective.name) or objective.name.removeprefix("eval_").replace("_", " ")
    return words if several <= MOST_BESIDE else words.replace(" ", "\n")


def cells(measured: Mapping[str, Any], objectives: Sequence[Objective]) -> list[str]:
    """The objectives as far as they are measured."""
    found = [(measured.get(objective.name), objective) for objective in objectives]
    return [number(value, o) if isinstance(value, (int, float)) else "" for value, o in found]
