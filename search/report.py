"""A search as one HTML file that needs no network, and as Markdown."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from ruamel.yaml import YAML

from lorafront.search import budget, recommendation, report_figures
from lorafront.search.baseline import standing
from lorafront.search.confirmation import Confirmation, as_confirmed
from lorafront.search.confirmation_report import chance, verdict, with_interval
from lorafront.search.confirmation_report import lines as confirmation_lines
from lorafront.search.findings import Findings, findings
from lorafront.search.front import front_of, values
from lorafront.search.importance import importances
from lorafront.search.study_table import StudyTable
from lorafront.search.tables import baseline_lines, number, reference_lines, short, summary, to_baseline
from lorafront.spaces.errors import InvalidInput, NoFront

PACKAGES = ("lorafront", "ray", "optuna", "torch", "transformers", "peft", "bitsandbytes", "datasets", "mlflow")
MOST_NAMED = 8  # trials of one outcome


@dataclass(frozen=True)
class Section:
    """A figure with its heading and what it says."""

    name: str
    title: str
    says: str
    figure: Any


def as_html(table: StudyTable, confirmed: Confirmation | None = None, found: Findings | None = None) -> str:
    """The whole report; plotly's own script is in it.

    Args:
        table: the study.
        confirmed: what replicates say of its front; None where there are none.
        found: what `shown_findings` says of it; looked for where it is not given.
    """
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    search = table.search
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files("lorafront.search").joinpath("report.html").read_text(encoding="utf-8"))
    figures = [
        {
            "name": section.name, "title": section.title, "says": section.says,
            "html": Markup(  # noqa: S704  # plotly escapes what stands in it
                to_html(section.figure, full_html=False, include_plotlyjs=False, div_id=f"figure-{section.name}",
                        config={"displaylogo": False, "responsive": True})
            ),
        }
        for section in sections(table, confirmed)
    ]  # fmt: skip
    return template.render(
        name=search.name,
        imported=search.imported,
        model=short(search.model.name),
        data=short(search.data.path),
        spent=budget.shown(search.budget, table.spent),
        recommended=recommended(table, confirmed),
        front=front_rows(table),
        confirmed=confirmed_rows(confirmed) if confirmed else None,
        references=[*baseline_lines(table), *reference_lines(table)],
        findings=found or shown_findings(table),
        figures=figures,
        ends=ends(table),
        notes=table.notes,
        versions=versions(),
        yaml=as_yaml(table),
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704  # plotly's own
    )


def as_markdown(table: StudyTable, confirmed: Confirmation | None = None, found: Findings | None = None) -> str:
    """What can be said without figures; arguments as for `as_html`."""
    rows = front_rows(table)
    lines = [f"# {table.search.name}", "", summary(table, markdown=True), ""]
    lines += [f"- {line}" for line in recommended(table, confirmed)]
    if rows["rows"]:
        lines += ["", "## Pareto front", "", *markdown_table(rows)]
    if confirmed:
        known = confirmed_rows(confirmed)
        lines += ["", "## With other seeds", "", *markdown_table(known), "", *(f"- {line}" for line in known["says"])]
    if (found := found or shown_findings(table)) is not None and found.found:
        lines += ["", "## Findings", "", escape(found.about)]
        for title, group in found.titled:
            lines += ["", f"### {title}", "", *(f"- {escape(one.says)}" for one in group)]
    if table.notes:
        lines += ["", "## Notes", "", *(f"- {escape(note)}" for note in table.notes)]
    lines += ["", "## How trials ended", ""]
    lines += [f"- {end['count']} x {end['outcome']}: {escape(end['detail'])}" for end in ends(table)]
    lines += [
        "",
        "## As a search file" if table.search.imported else "## To repeat it",
        "",
        f"Installed where this was written: {versions()}",
        "",
    ]
    return "\n".join([*lines, "```yaml", as_yaml(table).rstrip(), "```", ""])


def markdown_table(rows: dict[str, Any]) -> list[str]:
    """A table's headings and rows."""
    heads = [heading["text"] for heading in rows["headings"]]
    cells = [[cell.replace("|", chr(92) + "|") for cell in row] for row in rows["rows"]]
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in cells)]


def sections(table: StudyTable, confirmed: Confirmation | None = None) -> list[Section]:
    """The figures that the data supports, in their order."""
    shares = importances(table)
    found = [
        Section(
            "trials", "All trials", "Each point is a trial at full fidelity; hover for its configuration.",
            report_figures.front_figure(table),
        ),
        Section(
            "curves", "Learning curves", "Quality at each rung; trials are only compared at the same rung.",
            report_figures.curves_figure(table),
        ),
        Section(
            "hypervolume", "Progress", "How much of the final front the search had found after how much training.",
            report_figures.hypervolume_figure(table),
        ),
        Section(
            "parallel", "Configurations", "A line is a trial; drag along an axis to see those within a range alone.",
            report_figures.parallel_figure(table),
        ),
        Section(
            "importance", "Which hyperparameters matter",
            "PED-ANOVA (Watanabe et al. 2023) over the trials of this search, which its sampler chose: a hint at what "
            "separates good from bad, no measured effect.",
            report_figures.importance_figure(shares),
        ),
        Section(
            "memory", "Predicted and measured VRAM",
            "Predicted before a trial, measured in it or alone at the end.",
            report_figures.memory_figure(table),
        ),
    ]  # fmt: skip
    if confirmed is not None:
        says = "With their 95 % intervals, on rows that the search never saw; dotted, from where the search had them."
        found.insert(0, Section("confirmed", "Means over seeds", says, report_figures.confirmed_figure(confirmed)))
    return [section for section in found if section.figure is not None]


def recommended(table: StudyTable, confirmed: Confirmation | None = None) -> Sequence[str]:
    """What `lorafront recommend` says; nothing where it has nothing to say."""
    found = chosen(table, confirmed)
    return recommendation.lines(found, confirmed) if found else []


def chosen(table: StudyTable, confirmed: Confirmation | None = None) -> recommendation.Recommendation | None:
    """What `lorafront recommend` takes; None where it takes nothing."""
    try:
        return recommendation.recommend(as_confirmed(confirmed) if confirmed else table)
    except (InvalidInput, NoFront):
        return None


def shown_findings(table: StudyTable) -> Findings | None:
    """What `lorafront findings` says; None where the search has no quality."""
    try:
        return findings(table)
    except InvalidInput:
        return None


def front_rows(table: StudyTable) -> dict[str, Any]:
    """The front as headings and rows of text."""
    objectives = table.search.objective_list
    headings = [{"text": "trial", "number": True}, {"text": "configuration", "number": False}]
    headings += [{"text": text, "number": True} for text in ("learning rate", "dropout")]
    headings += [{"text": f"{o.label} {f'({o.unit})' if o.unit else ''}".strip(), "number": True} for o in objectives]
    own = standing(table)
    headings += [{"text": "to baseline", "number": True}] if own else []
    rows = [
        [
            str(trial.number), trial.lora.label, f"{trial.lora.learning_rate:.3g}", f"{trial.lora.dropout:.3g}",
            *(number(v, o) for v, o in zip(values(trial, objectives), objectives, strict=True)),
            *([to_baseline(trial, own.trial, objectives)] if own else []),
        ]
        for trial in front_of(table)
    ]  # fmt: skip
    return {"headings": headings, "rows": rows}


def confirmed_rows(found: Confirmation) -> dict[str, Any]:
    """What replicates say, as headings and rows of text, and in sentences."""
    objectives = found.table.search.objective_list
    headings = [{"text": "trial", "number": True}, {"text": "configuration", "number": False}]
    measured = [f"{o.label} {f'({o.unit})' if o.unit else ''}".strip() for o in objectives]
    headings += [{"text": text, "number": True} for text in ("seeds", *measured)]
    headings += [{"text": "chance of being on the front", "number": True}, {"text": "", "number": False}]
    rows = [
        [
            str(entry.trial.number), entry.trial.lora.label, str(entry.seeds),
            *(with_interval(entry, o) for o in objectives), chance(entry.probability), verdict(found, entry),
        ]
        for entry in found.entries
    ]  # fmt: skip
    rows += [
        [one.name, one.lora.label, str(one.entry.seeds), *(with_interval(one.entry, o) for o in objectives), "", ""]
        for one in found.compared
        if one.entry is not None
    ]
    return {"headings": headings, "rows": rows, "says": confirmation_lines(found)}


def ends(table: StudyTable) -> list[dict[str, Any]]:
    """How trials ended, the most frequent first, with the last line of what failed ones said."""
    counted = Counter(trial.outcome for trial in table.trials if trial.outcome is not None)
    found = []
    for outcome, count in counted.most_common():
        trials = [trial for trial in table.trials if trial.outcome is outcome]
        errors = [trial.result.error.strip().splitlines() for trial in trials if trial.result]
        said = sorted({error[-1] for error in errors if error})
        named = ", ".join(str(trial.number) for trial in trials[:MOST_NAMED])
        more = " and others" if count > MOST_NAMED else ""
        detail = f"trial{'' if count == 1 else 's'} {named}{more}" + (f": {'; '.join(said)}" if said else "")
        found.append({"outcome": outcome.value, "count": count, "detail": detail})
    return found


def as_yaml(table: StudyTable) -> str:
    """The search file with every default."""
    stream, yaml = io.StringIO(), YAML()
    yaml.default_flow_style = None
    yaml.width = 76
    yaml.dump(table.search.model_dump(mode="json", exclude_none=True), stream)
    return stream.getvalue()


def versions() -> str:
    """Of the packages that a search is made of."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
