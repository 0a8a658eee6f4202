"""A search in MLflow's own UI: a real server, a real browser, what a person sees."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mlflow_server import served
from support import lora

from lorafront.search.front import front_of
from lorafront.search.mlflow_tracker import Projection, Tracking
from lorafront.search.paths import RootPaths
from lorafront.search.report_files import write_report
from lorafront.search.run import write_front
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
RUNGS = (64, 128, 256, 512)
MANY = 500
ROWS_SECONDS = 30  # until the rows show, on a machine that does other things too; measured alone: two to five

pytestmark = pytest.mark.slow


def study(name: str, count: int) -> StudyTable:
    """Trials whose quality follows rank and learning rate; three in five are stopped at a rung."""
    draw = np.random.default_rng(0)
    trials = []
    for number in range(count):
        rank, rate = int(draw.choice([4, 8, 16, 32, 64])), float(10 ** draw.uniform(-5, -3))
        kind, rungs = str(draw.choice(["nf4", "bf16", "int8"])), int(draw.choice([1, 2, 3, 4, 4]))
        peak = 3 + rank / 16 + {"nf4": 0, "int8": 2, "bf16": 6}[kind]
        loss = 10 + 40 / rank + 5 * (np.log10(rate) + 4) ** 2 + draw.random()
        reports = tuple(
            Report(
                rows, {"perplexity": loss * (1 + 0.5 / (index + 1)), "peak_vram_gb": peak, "train_seconds": rows / 10}
            )
            for index, rows in enumerate(RUNGS[:rungs])
        )
        outcome = Outcome.COMPLETE if rungs == len(RUNGS) else Outcome.STOPPED
        state = "COMPLETE" if outcome is Outcome.COMPLETE else "PRUNED"
        result = Report(RUNGS[rungs - 1], reports[-1].measurements, outcome)
        configuration = lora(rank=rank, alpha=2.0 * rank, learning_rate=rate, quantization=kind)
        began = BEGAN + timedelta(minutes=number)
        ended = began + timedelta(minutes=9)
        trials.append(TrialRecord(number, state, configuration, 1, reports, result, began, ended))
    search = parse_search({"name": name, "model": "someone/model", "data": {"path": "d"}, "budget": {"trials": count}})
    references = {"bare base in nf4": {"perplexity": 80.0}}
    return StudyTable(search, tuple(trials), references, (), uid=name, data={"rungs": list(RUNGS)})


def write(table: StudyTable, root: RootPaths, tracking: Tracking) -> None:
    """The files of a search that has ended, and its runs."""
    paths = root.search(table.search.name)
    paths.folder.mkdir(parents=True)
    paths.search_yaml.write_text("name: of no matter here\n")
    write_front(table, paths)
    write_report(table, root, paths.report_html)
    Projection(tracking, paths).update(table, over=True)


@dataclass(frozen=True)
class Shown:
    """An experiment in the UI."""

    address: str
    experiment: str
    parent: str
    table: StudyTable

    def url(self, rest: str) -> str:
        return f"{self.address}/#/experiments/{self.experiment}/{rest}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the server."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with served(folder) as address:
        yield address


def shown(server: str, table: StudyTable, root: Path, tracking: Tracking) -> Shown:
    """A search in the UI, its runs written to `tracking`, which is the server or its store."""
    from mlflow import MlflowClient

    name, client = table.search.name, MlflowClient(server)
    write(table, RootPaths(root), tracking)
    experiment = client.get_experiment_by_name(name).experiment_id
    (parent,) = client.search_runs([experiment], "attributes.run_name = '" + name + "'")
    return Shown(server, experiment, parent.info.run_id, table)


@pytest.fixture(scope="module")
def few(server: str, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return shown(server, study("few", 24), tmp_path_factory.mktemp("few"), Tracking(server, "tracking.uri", None))


@pytest.fixture(scope="module")
def browser(server: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Wide enough for all columns; its picture is kept where `LORAFRONT_PICTURES` says."""
    context = browser.new_context(viewport={"width": 1800, "height": 1100})
    context.set_default_timeout(30_000)
    opened = context.new_page()
    yield opened
    if folder := os.environ.get("LORAFRONT_PICTURES"):
        context.pages[-1].wait_for_timeout(2_000)
        context.pages[-1].screenshot(path=Path(folder) / f"{request.node.name}.png")
    context.close()


def opened(page: Page, url: str) -> None:
    """Without the assistant, which takes a quarter of the page."""
    page.goto(url)
    page.get_by_role("button", name="Close").first.click()


def matching(page: Page, query: str, count: int) -> None:
    """Filter the table of runs, and wait until it says how many there are."""
    page.get_by_placeholder("metrics.rmse").fill(query)
    page.keyboard.press("Enter")
    page.wait_for_function("n => document.body.innerText.includes(`${n} matching run`)", arg=count)


def trials_shown(page: Page) -> list[int]:
    """Numbers of the trials in the table of runs, from top to bottom."""
    page.get_by_text("matching runs").wait_for()
    names = page.locator('[col-id*="run_name" i] a, [col-id*="runName"] a, [role="gridcell"] a[href*="/runs/"]')
    names.first.wait_for()
    return [int(text.split()[0]) for text in names.all_inner_texts() if text.split()[0].isdigit()]


def test_the_run_of_a_search_opens_with_what_came_out_and_the_commands(page: Page, few: Shown) -> None:
    """As text with a table, not as Markdown; the first lines are there before anybody asks for more."""
    opened(page, few.url(f"runs/{few.parent}"))
    members = front_of(few.table)
    page.get_by_text(f"{len(members)} on the front").first.wait_for()
    page.get_by_text("Show more").click()
    for member in members:
        page.get_by_role("cell", name=member.lora.label, exact=True).first.wait_for()
    assert page.get_by_text("lorafront export few --out exports/few").is_visible()
    assert page.get_by_text("learning_rate").first.is_visible()


def test_its_artifacts_have_plot_table_and_report(page: Page, few: Shown) -> None:
    """The picture and the table are drawn where they are chosen."""
    opened(page, few.url(f"runs/{few.parent}/artifacts"))
    for name in ("front.json", "report.html", "report.md", "search.yaml"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text("front.png", exact=True).first.click()
    page.wait_for_function("[...document.images].some(one => one.naturalWidth > 1000)")
    page.get_by_text("front.csv", exact=True).first.click()
    page.get_by_text("learning_rate").first.wait_for()


def test_the_front_is_a_filter_away(page: Page, few: Shown) -> None:
    """By `tags.pareto = 'true'`, below the run of the search; and so are those that were stopped at a rung."""
    members = {member.number for member in front_of(few.table)}
    opened(page, few.url("runs"))
    matching(page, "tags.pareto = 'true'", len(members) + 1)
    page.locator('[data-component-id$="runnamecellrenderer.tsx_46"]').first.click()  # the plus before the search
    assert set(trials_shown(page)) == members
    stopped = {one.number for one in few.table.trials if one.last and one.last.rows == RUNGS[1]}
    matching(page, "tags.stopped_at_rung = '2'", len(stopped) + 1)
    assert set(trials_shown(page)) == stopped


def test_the_links_of_the_description_open_sorted_tables_with_their_columns(page: Page, few: Shown) -> None:
    """The front by its quality; of all trials the rank sorts as a number."""
    page.goto(few.url(f"runs/{few.parent}"))
    with page.context.expect_page() as found:
        page.get_by_role("link", name="the front", exact=True).click()
    table = found.value
    table.get_by_role("button", name="Close").first.click()
    assert trials_shown(table) == [member.number for member in front_of(few.table)]
    for column in ("perplexity", "peak_vram_gb", "rank", "quantization"):
        table.get_by_role("columnheader", name=column, exact=True).first.wait_for()
    between = {one.number for one in few.table.trials if one.lora.rank in {16, 32}}
    matching(table, "metrics.rank > 8 and metrics.rank < 64", len(between))
    assert set(trials_shown(table)) == between


def test_members_of_the_front_are_compared_by_their_curves(page: Page, few: Shown) -> None:
    """One line for each member, over training rows."""
    page.goto(few.url(f"runs/{few.parent}"))
    with page.context.expect_page() as found:
        page.get_by_role("link", name="its curves", exact=True).click()
    charts = found.value
    charts.get_by_placeholder("Search metric charts").fill("^perplexity$")
    drawn = "() => Math.max(0, ...[...document.querySelectorAll('.js-plotly-plot')].map(p => p.data.length))"
    charts.wait_for_function(f"({drawn})() >= {len(front_of(few.table))}")
    curves = charts.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data.map(t => [...(t.x || [])]))"
    )
    assert curves.count(list(RUNGS)) >= len(front_of(few.table))


def test_an_experiment_of_500_trials_stays_usable(page: Page, server: str, folder: Path, tmp_path: Path) -> None:
    """Its table, its front and its run show within seconds."""
    store = Tracking(f"sqlite:///{folder}/server.db", "tracking.uri", (folder / "many").as_uri())  # a third of the time
    many = shown(server, study("many", MANY), tmp_path, store)
    opened(page, table := many.url("runs"))
    for url in (table, many.url("runs?viewStateShareKey=front"), many.url("runs?viewStateShareKey=trials")):
        page.goto("about:blank")
        start = time.monotonic()
        page.goto(url)
        page.get_by_text("matching runs").wait_for()
        page.locator('[role="gridcell"] a').first.wait_for()
        took = time.monotonic() - start
        print(f"{url.rsplit('/', 1)[-1]}: {took:.1f} s")
        assert took < ROWS_SECONDS
    page.goto(many.url(f"runs/{many.parent}"))
    page.get_by_text(f"{MANY} of {MANY} trials recorded").first.wait_for()
