"""A report says what the study says, in one file that opens without a network, and in Markdown."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import lora

from lorafront.search.front import front_of
from lorafront.search.importance import LEAST_TRIALS, importances
from lorafront.search.report import as_html, as_markdown
from lorafront.search.report_figures import hypervolume_over_rows
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

CHROMIUM = Path("/usr/bin/chromium")
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
EVIL = "<script>window.broken = 1</script>"


def trial(number: int, rank: int, loss: float, outcome: Outcome = Outcome.COMPLETE) -> TrialRecord:
    """One that saw two rungs, or ended at the first; more of a rank needs more memory."""
    quality = [{"perplexity": loss * factor, "peak_vram_gb": 1 + rank / 8} for factor in (2.0, 1.0)]
    measured = [{**found, "predicted_peak_vram_gb": 1 + rank / 8} for found in quality]
    complete = outcome is Outcome.COMPLETE
    rungs = tuple(Report(rows, found) for rows, found in zip((32, 64), measured, strict=True))[: 2 if complete else 1]
    result = Report(rungs[-1].rows, rungs[-1].measurements, outcome, EVIL if outcome is Outcome.USER_ERROR else "")
    state = {Outcome.COMPLETE: "COMPLETE", Outcome.STOPPED: "PRUNED"}.get(outcome, "FAIL")
    ended = BEGAN + timedelta(minutes=number + 1)
    configuration = lora(
        rank=rank,
        alpha=2.0 * rank,
        learning_rate=1e-4 * (1 + 7 * number % 11),
        quantization=("nf4", "bf16")[number % 2],
    )
    return TrialRecord(number, state, configuration, 1, rungs, result, BEGAN, ended)


@pytest.fixture(scope="module")
def table() -> StudyTable:
    """Thirty trials: quality depends on the rank alone, one stopped, one failed with a text that is no text."""
    search = parse_search({"name": "n", "model": "m", "data": {"path": f"/{EVIL}"}})
    trials = [trial(n, rank, 40 / rank + 0.01 * n) for n, rank in enumerate([4, 8, 16, 32] * 7)]
    ends = (Outcome.STOPPED, Outcome.USER_ERROR)
    trials += [trial(28 + n, 4, 50.0, outcome) for n, outcome in enumerate(ends)]
    return StudyTable(search, tuple(trials), {"bare base": {"perplexity": 99.0}}, ("a note",))


def test_markdown_has_the_front_and_the_file_to_repeat_it(table: StudyTable) -> None:
    """And how the others ended."""
    text = as_markdown(table)
    for member in front_of(table):
        assert re.search(rf"^\| {member.number} \| {re.escape(member.lora.label)} \|", text, re.MULTILINE)
    assert parse_search(yaml_of(text)).name == "n"
    assert "- 1 x stopped" in text
    assert EVIL not in text.split("```yaml")[0]
    assert "take trial" in text


def yaml_of(text: str) -> dict:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(text.split("```yaml\n")[1].split("```", maxsplit=1)[0])


def test_html_needs_no_network_and_runs_nothing_that_a_trial_said(table: StudyTable) -> None:
    """What came from files and errors stands there as text."""
    html = as_html(table)
    page = re.sub(r"<script>.*?</script>", "", html, count=1, flags=re.DOTALL)  # plotly's own
    assert EVIL not in page
    assert "&lt;script&gt;window.broken" in page
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", page)


def test_progress_ends_at_the_whole_hypervolume_and_never_falls(table: StudyTable) -> None:
    """Over the rows of all trials that had ended, also of those that were stopped."""
    found = hypervolume_over_rows(table)
    shares = [share for _, share in found]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert found[-1][0] == 28 * 64 + 2 * 32


def test_the_hyperparameter_that_decides_is_the_most_important(table: StudyTable) -> None:
    """For both objectives the rank; of few trials nothing is said."""
    found = importances(table)
    assert {max(shares, key=shares.__getitem__) for shares in found.values()} == {"rank"}
    assert set(found) == {"perplexity", "peak VRAM"}
    assert importances(StudyTable(table.search, table.trials[: LEAST_TRIALS - 1], {}, ())) == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_what_the_study_has(table: StudyTable, scheme: str, tmp_path: Path) -> None:
    """Without an error, wide and narrow, with the front as the study has it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    file = tmp_path / "report.html"
    file.write_text(as_html(table), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        for width in (1200, 420):
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
            errors: list[str] = []
            page.on("pageerror", lambda error, said=errors: said.append(str(error)))
            page.goto(file.as_uri())
            page.wait_for_function("document.querySelectorAll('.main-svg').length > 0")
            drawn = json.loads(
                page.evaluate(
                    "JSON.stringify(document.getElementById('figure-trials').data.map(t => [t.name, t.customdata]))"
                )
            )
            names = page.evaluate("[...document.querySelectorAll('h2[id]')].map(h => h.id)")
            broken = page.evaluate("window.broken === undefined && document.documentElement.scrollWidth <= innerWidth")
            assert errors == []
            assert broken
            assert names == ["trials", "curves", "hypervolume", "parallel", "importance", "memory"]
            assert sorted(dict(drawn)["front"]) == sorted(member.number for member in front_of(table))
            assert sum(len(numbers) for _, numbers in drawn) == len(table.complete)
            page.close()
        browser.close()
