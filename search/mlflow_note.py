"""What the run of a search says of itself in MLflow: what was searched, the front, and what to do with it. Pure.

Markdown, for the description that MLflow's UI shows above a run. It stays within what MLflow keeps of a tag.
"""

from __future__ import annotations

import shlex
from collections import Counter
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lorafront.search import budget
from lorafront.search.front import front_of
from lorafront.search.mlflow_views import links
from lorafront.search.paths import SearchPaths
from lorafront.search.study_table import StudyTable
from lorafront.search.tables import baseline_lines, correlation_lines, reference_lines, short
from lorafront.spaces.objectives import Objective
from lorafront.spaces.parameters import describe

if TYPE_CHECKING:
    from lorafront.search.confirmation import Confirmation

MOST_MEMBERS = 15  # of the front; front.csv has all of it
MOST_VALUES = 120  # characters of what a hyperparameter may be


def note(table: StudyTable, paths: SearchPaths, experiment_id: str, confirmed: Confirmation | None = None) -> str:
    """The description of a search's run; its first lines are what the UI shows before it is asked for more.

    Args:
        table: the study, which may just have begun.
        paths: of the search; commands name its root where it is not the usual one.
        experiment_id: of the run.
        confirmed: what replicates say of its front; None where there are none.
    """
    return "\n".join(
        [*_head(table, experiment_id), *_front(table, confirmed), *_commands(table, paths, confirmed), *_more(table)]
    )


def _head(table: StudyTable, experiment_id: str) -> list[str]:
    search = table.search
    axes = " and ".join(_with_unit(objective) for objective in search.objective_list)
    limits = f", within {', '.join(map(str, search.limits))}" if search.limits else ""
    what = f"**{_code(short(search.model.name))}** on **{_code(short(search.data.path))}**"
    count = len(front_of(table))
    return [
        f"**{count} on the front**, {budget.shown(search.budget, table.spent)}: see {links(experiment_id)}.",
        "",
        f"{what} ({search.task}, {search.data.format}): {axes}{limits}. Artifacts: plot, table, report.",
        "",
    ]


def _more(table: StudyTable) -> list[str]:
    search = table.search
    how = f"sampler {search.sampler}, early stopping {search.early_stopping}, seed {search.seed}"
    if search.confirms is not None:
        how = f"replicates of {search.confirms} with other seeds, on rows that it never saw"
    rows = [f"| {name} | {escape(_cut(describe(value)))} |" for name, value in search.space.parameters().items()]
    ends = Counter(trial.outcome for trial in table.counted)
    told = [f"{count} x {outcome.value}" for outcome, count in ends.most_common() if outcome is not None]
    told += [*reference_lines(table), *baseline_lines(table), *correlation_lines(table)]
    return [
        "### What was searched",
        "",
        f"- {how}",
        *(f"- {escape(line)}" for line in told),
        "",
        *_spaced(["| searched | values |", "|---|---|", *rows]),
    ]


def _front(table: StudyTable, confirmed: Confirmation | None) -> list[str]:
    members = front_of(table)
    if not members:
        return []
    from lorafront.search.report import confirmed_rows, front_rows, markdown_table, recommended

    found = confirmed_rows(confirmed) if confirmed else front_rows(table)
    left = len(found["rows"]) - MOST_MEMBERS
    more = [f"and {left} more, in front.csv" if confirmed is None else f"and {left} more"] if left > 0 else []
    title = "### Front, trained again with other seeds" if confirmed else "### Front"
    return [
        title,
        "",
        *_spaced(markdown_table({**found, "rows": found["rows"][:MOST_MEMBERS]})),
        "",
        *more,
        "",
        *(f"- {escape(line)}" for line in recommended(table, confirmed)),
        "",
    ]


def _commands(table: StudyTable, paths: SearchPaths, confirmed: Confirmation | None) -> list[str]:
    if table.search.confirms is not None or not (members := front_of(table)):
        return []
    from lorafront.search.report import chosen

    name, root = paths.name, paths.folder.parent
    best = chosen(table, confirmed)
    number = (best.trial if best else members[0]).number
    option = "" if root == Path("runs") else f" --root {shlex.quote(str(root))}"
    return [
        "### What to do with it",
        "",
        "```",
        f"lorafront recommend {name}{option}",
        f"lorafront export {name} --out exports/{name}{option}",
        f"lorafront register {name} {number} --as {name}{option}",
        "```",
        "",
    ]


def _spaced(rows: list[str]) -> list[str]:
    """MLflow's UI draws tables without any space between columns."""
    return [row.replace(" | ", "&emsp; | ") for row in rows]


def _with_unit(objective: Objective) -> str:
    better = "higher is better" if objective.direction == "maximize" else "lower is better"
    unit = f" in {objective.unit}" if objective.unit else ""
    return f"{objective.label}{unit} ({better})"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_VALUES else f"{text[:MOST_VALUES]} …"


def _code(name: str) -> str:
    return f"<code>{escape(name)}</code>"
