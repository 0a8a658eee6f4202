"""What the driver costs per result as a study grows to 10,000 trials, 500 at once, and how fast readers are then.

The searcher, the ledger and the SQLite study are those of a real search; only training is a formula. All trials are
driven through the searcher (a question, a rung, the end), 500 in flight, between the sizes with uniform draws; at each
size a few with the default (`mfgp` and the rule `model`), with TPE, and with uniform draws are timed. A second part
runs a whole toy search under Ray Tune.

What limits it, in seconds of a core on the machine of `results/scale.json`: the sampler's own question, which for
`mfgp` is 0.3 at 100 trials and 0.6 at 10,000 (it learns from 400 observations at most; the 500 trials in flight cost as
much again), for TPE 0.03 and 0.7. Asking, storing and telling a trial takes 0.02 at every size.

python benchmarks/scale.py
"""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray

import argparse
import json
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from lorafront.search.model_stopping import Model
from lorafront.search.optuna_searcher import OptunaSearcher, Workplace
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.progress import Silent
from lorafront.search.ray_trainable import JOIN, REPORTS
from lorafront.search.run import run_search
from lorafront.search.samplers import make_sampler
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.stopping import Never, StoppingRule
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import read_study
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "scale.json"
SIZES = (100, 1000, 2500, 5000, 10_000)
RUNGS = (25, 50, 100)
BAR_SECONDS = 2.0  # for `status` and `pareto` at 10,000 trials
PACKAGES = ("ray", "optuna", "SQLAlchemy", "lorafront")


def search_of(name: str, trials: int, **changes: Any) -> SearchFile:
    """A search over the default space."""
    return parse_search(
        {"name": name, "model": "m", "data": {"path": "d"}, "space": {"bias": "none"}, "budget": {"trials": trials},
         **changes}
    )  # fmt: skip


def measured(lora: LoraConfiguration, rows: int) -> Report:
    """What a toy trial reports at a rung."""
    session = ToySession(lora)
    session.train(rows)
    return Report(rows, dict(session.evaluate()), Outcome.COMPLETE if rows == RUNGS[-1] else None)


class Cost(NamedTuple):
    """Seconds of the clock, and of a core: on a machine that others use only the second one compares."""

    wall: float
    core: float


def timed(work: Callable[[], Any]) -> tuple[Any, Cost]:
    """(result, what it cost)."""
    start, core = time.perf_counter(), time.process_time()
    result = work()
    return result, Cost(time.perf_counter() - start, time.process_time() - core)


def median(costs: Iterable[Cost]) -> dict[str, float]:
    """Of each column."""
    wall, core = (round(statistics.median(column), 4) for column in zip(*costs, strict=True))
    return {"wall": wall, "core": core}


@dataclass
class Switched:
    """A stopping rule that can be exchanged."""

    rule: StoppingRule

    def stops(self, number: int, rows: int, values: Sequence[float]) -> bool:
        """See `StoppingRule`."""
        return self.rule.stops(number, rows, values)


class Driven:
    """A study under its searcher, with so many trials in flight."""

    def __init__(self, paths: SearchPaths, in_flight: int) -> None:
        paths.folder.mkdir(parents=True)
        self.paths = paths
        self.search = search_of(paths.name, max(SIZES) * 2)
        self.ledger = StudyLedger(paths.study_db, self.search, create=True)
        self.configurations: dict[str, tuple[int, LoraConfiguration]] = {}
        self.rule = Switched(Never())
        workplace = Workplace(lambda number, lora, *_: {"number": number, "lora": lora})
        self.searcher = OptunaSearcher(self.ledger, workplace, Silent(), unfinished=[], rule=self.rule)
        self.asked = 0
        self.decide(RandomSampler(seed=0), Never())
        for _ in range(in_flight):
            self.suggest()

    def decide(self, sampler: BaseSampler, rule: StoppingRule) -> None:
        """From now on with these."""
        self.ledger.view.study.sampler = sampler
        self.rule.rule = rule

    def suggest(self) -> Cost:
        """Ask for a trial."""
        self.asked += 1
        config, cost = timed(lambda: self.searcher.suggest(str(self.asked)))
        (told,) = config[JOIN]
        self.configurations[str(self.asked)] = (told["number"], told["lora"])
        return cost

    def turn(self) -> dict[str, Cost]:
        """The oldest trial in flight reports its rungs and ends, and another one is asked for."""
        worker, (number, lora) = next(iter(self.configurations.items()))
        del self.configurations[worker]

        def hear(rows: int) -> tuple[list[int], Cost]:
            said = {REPORTS: json.dumps({number: measured(lora, rows).as_json()})}
            return timed(lambda: self.searcher.note(worker, said))

        costs = {}
        for rows in RUNGS:
            stopped, cost = hear(rows)
            costs["end" if stopped or rows == RUNGS[-1] else "rung"] = cost
            if stopped:
                break
        self.searcher.on_trial_complete(worker)
        return {**costs, "ask": self.suggest()}


def growth(root: RootPaths, sizes: tuple[int, ...], turns: int, in_flight: int) -> Iterator[dict[str, Any]]:
    """Seconds per event at each size, by who decides."""
    driven = Driven(root.search("scale"), in_flight)
    uniform = (driven.ledger.view.study.sampler, Never())
    search = driven.search
    deciding: dict[str, tuple[BaseSampler, StoppingRule]] = {
        "default": (make_sampler(search), Model(search, lambda: driven.ledger.view.trials)),
        "tpe": (TPESampler(seed=0), Never()),
        "uniform": uniform,
    }
    for size in sizes:
        driven.decide(*uniform)
        began = time.perf_counter()
        while driven.ledger.recorded < size - turns * len(deciding):
            driven.turn()
        row: dict[str, Any] = {
            "trials": size, "in_flight": in_flight, "seconds_since_last": round(time.perf_counter() - began, 1)
        }  # fmt: skip
        for name, who in deciding.items():
            driven.decide(*who)
            events = [driven.turn() for _ in range(turns)]
            row[name] = {key: median([event[key] for event in events]) for key in events[0]}
        row["megabytes"] = round(_bytes(driven.paths.study_db) / 1e6, 2)
        row["driver_megabytes"] = round(psutil.Process().memory_info().rss / 1e6)
        yield row


def _bytes(path: Path) -> int:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path.stat().st_size


def readers(root: RootPaths, repeats: int = 3) -> dict[str, dict[str, float]]:
    """Seconds of the commands from process start to end, and of reading alone: the best of a few."""
    commands = {"status": ["status"], "pareto": ["pareto"], "pareto --json": ["pareto", "--json"], "list": ["list"]}
    found = {}
    for name, (command, *options) in commands.items():
        arguments = [command, *([] if command == "list" else ["scale"]), *options, "--root", str(root.root)]
        found[name] = _best([_command(arguments) for _ in range(repeats)])
    found["reading alone"] = _best([_reading(root.search("scale").study_db) for _ in range(repeats)])
    return found


def _best(measured_seconds: list[tuple[float, float]]) -> dict[str, float]:
    wall, core = (round(min(column), 3) for column in zip(*measured_seconds, strict=True))
    return {"wall": wall, "core": core}


def _command(arguments: list[str]) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lorafront.search.cli", *arguments], check=True, capture_output=True)  # noqa: S603
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _reading(path: Path) -> tuple[float, float]:
    start, core = time.perf_counter(), time.process_time()
    read_study(path)
    return time.perf_counter() - start, time.process_time() - core


def under_ray(root: RootPaths, trials: int, at_once: int) -> dict[str, Any]:
    """A whole toy search on tiny-llama's facts."""
    text = root.root / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {i} of a text that nobody trains on." for i in range(400)))
    search = search_of(
        f"ray-{trials}",
        trials,
        model=str(HERE.parent / "examples" / "tiny-llama"),
        data={"path": str(text), "max_length": 32, "train_rows": 64, "eval_rows": 8},
        training={"rows": 100, "rungs": list(RUNGS)},
        resources={"max_concurrent": at_once},
    )
    table, cost = timed(lambda: run_search(search, root, engine="toy"))
    stamps = [trial.ended.timestamp() for trial in table.counted if trial.ended is not None]
    half = sorted(stamps)[len(stamps) // 2 :]  # the first half has the start of Ray and of its actors in it
    return {
        "trials": len(table.counted),
        "at_once": at_once,
        "seconds": round(cost.wall, 1),
        "seconds_per_trial_in_the_second_half": round((half[-1] - half[0]) / max(1, len(half) - 1), 4),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="trials in the study")
    parser.add_argument("--turns", type=int, default=20, help="trials driven at each size and with each sampler")
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--ray-trials", type=int, default=64, help="0 leaves Ray out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lf-scale-") as folder:
        root = RootPaths(Path(folder))
        rows = []
        for row in growth(root, tuple(options.sizes), options.turns, options.in_flight):
            print(json.dumps(row), flush=True)
            rows.append(row)
        seconds = readers(root)
        print(json.dumps(seconds), flush=True)
        ray = under_ray(root, options.ray_trials, 2) if options.ray_trials else None
    first, last = rows[0], rows[-1]
    trials = last["trials"] - first["trials"]
    result = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in PACKAGES},
        "seconds_per_event_median": rows,
        "kilobytes_per_trial": round(1000 * (last["megabytes"] - first["megabytes"]) / trials, 2) if trials else None,
        "seconds_of_commands": seconds,
        "bar_seconds": BAR_SECONDS,
        "under_ray": ray,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
