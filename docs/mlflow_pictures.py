"""Take the documentation's pictures of the MLflow UI, in a real browser: the runs of a search, its front, a comparison.

Needs the test tools and a Chromium (`apt-get install chromium`).

    lorafront run examples/demo.yaml --root runs
    python docs/mlflow_pictures.py --root runs --search demo
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from mlflow import MlflowClient
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
SIZE = {"width": 1500, "height": 860}
STARTING_SECONDS = 60
FRONT = "tags.pareto = 'true'"
NOT_SHOWN = ("Dataset", "Source", "Models")
SHOWN = ("perplexity", "peak_vram_gb", "rank", "modules", "quantization", "learning_rate")


@contextmanager
def served(root: Path, port: int) -> Iterator[str]:
    """`lorafront ui` while the block runs."""
    command = [sys.executable, "-m", "lorafront.search.cli", "ui", "--root", str(root), "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:  # noqa: S603
        try:
            for _ in range(STARTING_SECONDS):
                try:
                    with urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310  # our own server
                        break
                except OSError:
                    time.sleep(1)
            yield address
        finally:
            server.terminate()


def tidy(page: Page, runs: str) -> None:
    """Open the table of runs and its parent, close what stands beside it, and show the columns that tell something."""
    page.goto(runs)
    page.get_by_text("matching runs").wait_for(timeout=60_000)
    page.get_by_role("button", name="Close").click()  # the assistant
    page.get_by_role("button", name="Toggle sidebar").click()
    page.locator('[data-component-id$="runnamecellrenderer.tsx_46"]').first.click()  # the plus before the parent
    page.get_by_role("button", name="Columns", exact=True).click()
    for column in (*NOT_SHOWN, *SHOWN):
        page.get_by_placeholder("Search columns").fill(column)
        page.wait_for_timeout(500)
        node = page.locator('[class*="treenode"]', has_text=re.compile(f"^{column}$"))
        node.get_by_text(column).last.click()
    page.keyboard.press("Escape")


def take(page: Page, picture: str) -> None:
    """What the browser shows, as a PNG."""
    page.wait_for_timeout(3_000)  # charts and tables move into place
    page.screenshot(path=HERE / picture)
    print(HERE / picture)


def main() -> None:
    """Find the search's runs and look at them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--search", default="demo")
    parser.add_argument("--port", type=int, default=5055)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    client = MlflowClient(f"sqlite:///{(options.root / 'mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name(options.search).experiment_id
    front = json.dumps([run.info.run_id for run in client.search_runs([experiment], FRONT)])
    (parent,) = client.search_runs([experiment], f"attributes.run_name = '{options.search}'")
    with served(options.root, options.port) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(f"{address}/#/experiments/{experiment}/runs/{parent.info.run_id}?workflowType=machine_learning")
        page.get_by_role("button", name="Close").click(timeout=60_000)  # the assistant
        page.get_by_text("Show more").click()
        take(page, "mlflow-search.png")
        page.close()
        page = browser.new_page(viewport=SIZE)
        tidy(page, f"{address}/#/experiments/{experiment}/runs")
        take(page, "mlflow-runs.png")
        page.get_by_placeholder("metrics.rmse").fill(FRONT)
        page.keyboard.press("Enter")
        take(page, "mlflow-front.png")
        page.goto(f"{address}/#/compare-runs?runs={quote(front)}&experiments={quote(json.dumps([experiment]))}")
        page.get_by_text("Scatter Plot").click(timeout=60_000)
        for axis, metric in (("x", "peak_vram_gb"), ("y", "perplexity")):
            page.locator(f"#{axis}-axis-selector").click()
            page.get_by_role("option", name=metric, exact=True).click()
        take(page, "mlflow-compare.png")
        browser.close()


if __name__ == "__main__":
    main()
