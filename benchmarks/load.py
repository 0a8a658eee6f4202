"""2,000 toy trials, 64 at once, through PostgreSQL and an MLflow server on one small machine: what each of them costs.

    python benchmarks/load.py

The servers are those of docker/compose.yaml (benchmarks/servers.py); the search is driven, scheduled, stored and
tracked as any other, and only its training is a formula and a pause. The nodes tell Ray of more cores than there are,
so that 64 workers run. Meanwhile `lorafront status` and MLflow are asked what a user would ask. At the end the study
and MLflow's runs are compared with what the workers noted outside the system. Writes `benchmarks/results/load.json`;
exits 1 where a result was lost, doubled or changed, or a run is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import psutil
from servers import MLFLOW, MLFLOW_PASSWORD, PROJECT, Servers, answer, basic, served
from through_ray import Meter

NAME, RUNGS, NODES = "load", (16, 32, 64), 2
OK = 200
PAUSE = "before_train:slow:20"  # 6 s before each rung; shorter trials end before the next ones begin
LOOK_SECONDS, ASK_SECONDS = 5.0, 30.0
WALL, CORE = "wall_ms", "core_ms"


def search_of(folder: Path, trials: int, at_once: int) -> dict[str, Any]:
    """The search file: every trial reports at every rung, and choosing one costs next to nothing (see scale.py)."""
    text = folder / "text.txt"
    text.write_text("\n\n".join(topics[name] for name in sorted(topics))[:60_000], encoding="utf-8")
    return {
        "name": NAME, "model": str(PROJECT / "examples" / "tiny-llama"),
        "data": {"path": str(text), "max_length": 32, "train_rows": 64, "eval_rows": 8},
        "space": {"bias": "none"},
        "training": {"rows": RUNGS[-1], "rungs": list(RUNGS), "batch_size": 4},
        "budget": {"trials": trials}, "resources": {"max_concurrent": at_once},
        "early_stopping": "off", "sampler": "random", "tracking": {"required": True},
    }  # fmt: skip


def drive(folder: Path) -> None:
    """The driver's own process: run the search and write what its parts took."""
    import lorafront.search.environment  # noqa: F401  # before Ray and MLflow
    from lorafront.search import mlflow_tracker
    from lorafront.search.optuna_searcher import OptunaSearcher
    from lorafront.search.pareto_scheduler import ParetoScheduler
    from lorafront.search.paths import RootPaths
    from lorafront.search.run import run_search
    from lorafront.search.search_file import parse_search
    from lorafront.search.study import StudyLedger

    meters = {CORE: Meter(), WALL: Meter(time.perf_counter)}
    for meter in meters.values():
        meter.wrap_public(StudyLedger, "database")
        meter.wrap(mlflow_tracker, "read_study", "reading for MLflow")
        meter.wrap(mlflow_tracker.Projection, "update", "MLflow")
        meter.wrap_public(OptunaSearcher, "lorafront")
        meter.wrap_public(ParetoScheduler, "lorafront")
    search = parse_search(json.loads((folder / "search.json").read_text()))
    start = time.perf_counter()
    run_search(search, RootPaths(folder / "root"), engine="toy")
    spent = {"wall_seconds": time.perf_counter() - start, "core_seconds": time.process_time()}
    parts = {unit: dict(meter.seconds) for unit, meter in meters.items()}
    (folder / "driver.json").write_text(json.dumps({**spent, "parts": parts}))


class Asked:
    """What somebody sees who looks at the search while it runs, again and again."""

    def __init__(self, servers: Servers) -> None:
        """Nothing was asked."""
        self.seconds: dict[str, list[float]] = {}
        self._servers = servers
        self._login = basic(MLFLOW_PASSWORD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._again, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, dict[str, float]]:
        """Median and longest seconds of each question."""
        self._stop.set()
        self._thread.join()
        return {
            what: {"median": round(statistics.median(all_), 2), "longest": round(max(all_), 2), "asked": len(all_)}
            for what, all_ in self.seconds.items()
        }

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """MLflow's server."""
        url = f"http://127.0.0.1:{self._servers.mlflow}/api/2.0/mlflow/{path}"
        return answer(url, body, Authorization=self._login)

    def experiment(self) -> str:
        """Its id; empty before the first run."""
        code, found = self.ask(f"experiments/get-by-name?experiment_name={NAME}")
        return str(found["experiment"]["experiment_id"]) if code == OK else ""

    def _again(self) -> None:
        while not self._stop.wait(ASK_SECONDS):
            if experiment := self.experiment():
                # What the UI asks for when its table of runs is opened.
                page = {"experiment_ids": [experiment], "max_results": 100, "order_by": ["attributes.start_time DESC"]}
                self._timed("MLflow: a page of 100 runs", lambda: self.ask("runs/search", page))  # noqa: B023  # now
                self._timed("lorafront status", self._status)

    def _timed(self, what: str, question: Callable[[], Any]) -> None:
        start = time.perf_counter()
        question()
        self.seconds.setdefault(what, []).append(time.perf_counter() - start)

    def _status(self) -> None:
        command = [sys.executable, "-m", "lorafront.search.cli", "status", NAME]
        subprocess.run(command, env=self._servers.driver(), check=True, capture_output=True, timeout=300)  # noqa: S603


class Growth:
    """Memory of the driver, by how many trials have ended."""

    def __init__(self, driver: subprocess.Popen[bytes], witness: Path) -> None:
        """Args: driver: to look at. witness: what the workers note."""
        self.megabytes: list[tuple[int, float]] = []
        self._process = psutil.Process(driver.pid)
        self._witness = witness

    def look(self) -> None:
        """Now."""
        ended = self._witness.read_text().count('"final"') if self._witness.is_file() else 0
        self.megabytes.append((ended, self._process.memory_info().rss / 1e6))

    def report(self, trials: int) -> dict[str, float]:
        """Megabytes after each quarter of the trials, and kilobytes per trial over the second half."""
        found = {f"after {part} trials": self._after(part) for part in (trials // 4, trials // 2, trials * 3 // 4)}
        later = [point for point in self.megabytes if trials // 2 <= point[0] < trials]  # then come plots and report
        slope = statistics.linear_regression(*zip(*later, strict=True)).slope if len({n for n, _ in later}) > 1 else 0.0
        return {**found, "at the end": round(self.megabytes[-1][1]), "kilobytes per trial": round(1000 * slope, 1)}

    def _after(self, trials: int) -> float:
        return round(next((size for ended, size in self.megabytes if ended >= trials), self.megabytes[-1][1]))


def core_seconds(processes: list[psutil.Process]) -> float:
    """Of processes and of those of their children that have ended."""
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def load(trials: int, at_once: int) -> dict[str, Any]:
    """Run it; what is written."""
    with served(NODES, -(-at_once // NODES), PAUSE) as servers:
        folder = servers.folder
        (folder / "search.json").write_text(json.dumps(search_of(folder, trials, at_once)))
        postgres = psutil.Process(servers.postgres.pid())
        before = {"PostgreSQL": core_seconds([postgres, *postgres.children()]),
                  "MLflow's server": core_seconds(servers.family(MLFLOW))}  # fmt: skip
        with (folder / "driver.log").open("wb") as log:
            driver = subprocess.Popen(  # noqa: S603  # this file
                [sys.executable, __file__, "--drive", str(folder)], stdout=log, stderr=log,
                env=servers.driver(),
            )  # fmt: skip
        asked, growth = Asked(servers), Growth(driver, servers.witness)
        while driver.poll() is None:
            growth.look()
            print(*(f"{number:.0f}" for number in growth.megabytes[-1]), flush=True)
            time.sleep(LOOK_SECONDS)
        seen = asked.stop()
        if driver.returncode:
            raise SystemExit((folder / "driver.log").read_text())
        after = {"PostgreSQL": core_seconds([postgres, *postgres.children()]),
                 "MLflow's server": core_seconds(servers.family(MLFLOW))}  # fmt: skip
        own = json.loads((folder / "driver.json").read_text())
        results = trials * len(RUNGS)
        parts = {
            unit: {part: round(1000 * seconds / trials, 1) for part, seconds in found.items()}
            for unit, found in own["parts"].items()
        }
        return {
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "trials": trials, "at_once": at_once, "results": results,
            "seconds": round(own["wall_seconds"]),
            "trials_per_hour": round(3600 * trials / own["wall_seconds"]),
            "driver_core_ms_per_result": round(1000 * own["core_seconds"] / results, 1),
            "driver_per_trial": parts,
            "server_core_ms_per_trial": {
                name: round(1000 * (after[name] - before[name]) / trials, 1) for name in before
            },
            "driver_megabytes": growth.report(trials),
            "seconds_of_questions": seen,
            **verdict(servers, asked),
        }  # fmt: skip


def verdict(servers: Servers, asked: Asked) -> dict[str, Any]:
    """What the study and MLflow hold, against what the workers noted."""
    os.environ.update(servers.driver())
    from lorafront.search.nothing_lost import judge, read_witness
    from lorafront.search.paths import RootPaths
    from lorafront.search.study_table import read_study

    found = judge(
        read_witness(servers.witness), read_study(RootPaths(servers.folder / "root").search(NAME).study_db), RUNGS
    )
    ended, token = 0, ""
    while True:
        page = {"experiment_ids": [asked.experiment()], "max_results": 1000, "page_token": token}
        runs = asked.ask("runs/search", page)[1]
        ended += sum(run["info"]["status"] == "FINISHED" for run in runs["runs"])
        token = runs.get("next_page_token", "")
        if not token:
            break
    return {"lost": found.lost, "doubled": found.doubled, "wrong": found.wrong, "finished_runs_in_mlflow": ended}


def main() -> None:
    """Load, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "results" / "load.json")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        drive(arguments.drive)
        return
    found = load(arguments.trials, arguments.at_once)
    print(json.dumps(found, indent=2))
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    whole = found["finished_runs_in_mlflow"] == arguments.trials + 1  # a parent
    if found["lost"] or found["doubled"] or found["wrong"] or not whole:
        sys.exit(1)


if __name__ == "__main__":
    main()
