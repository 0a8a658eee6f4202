"""What the driver costs per result as a study grows to 10,000 trials, 500 at once, and how fast readers are then.

The searcher, the ledger and the SQLite study are those of a real search; only training is a formula. At each size a few
trials are driven through the searcher (a rung, the end, the next question) while 500 are in flight; between two sizes
the study is filled with rows such as those trials leave, because driving all of them would only take longer. A second
part runs whole toy searches under Ray Tune, where every configuration is a Ray Tune trial.

What limits it, in seconds of a core on the machine of `results/scale.json`: the sampler's own question (TPE 3.2 at
10,000 trials), then that Optuna reads every running trial from the database at each question (0.17 to 0.33 with 500 of
them, "uniform"); a trial that is written as a whole takes 0.02 ("start point"), and a result 0.02, whatever the size.

python benchmarks/scale.py
"""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray

import argparse
import json
import os
import platform
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from optuna.distributions import distribution_to_json
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from lorafront.search import study_table
from lorafront.search.optuna_searcher import OptunaSearcher, Workplace
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.progress import Silent
from lorafront.search.ray_trainable import REPORT
from lorafront.search.run import run_search
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.start_points import Start
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import read_study
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.uniform_draw import UniformDraw
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "scale.json"
SIZES = (0, 1000, 2500, 5000, 10_000)
RUNGS = (25, 50, 100)
BAR_SECONDS = 2.0  # for `status` and `pareto` at 10,000 trials
# Optuna's tables, as far as an ended trial has rows in them.
INSERTS = {
    "trials": ("trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"),
    "trial_params": ("trial_id", "param_name", "param_value", "distribution_json"),
    "trial_values": ("trial_id", "objective", "value", "value_type"),
    "trial_user_attributes": ("trial_id", "key", "value_json"),
}
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


class Driven:
    """A study under its searcher, with so many trials in flight."""

    def __init__(self, paths: SearchPaths, in_flight: int) -> None:
        paths.folder.mkdir(parents=True)
        self.paths = paths
        self.search = search_of(paths.name, max(SIZES) * 2)
        self.ledger = StudyLedger(paths.study_db, self.search, create=True)
        self.generator = random.Random(0)  # noqa: S311  # a benchmark, no secret
        self.ledger.keep_starts([Start("", self._draw()[1], own=True) for _ in range(in_flight)])
        self.configurations: dict[str, LoraConfiguration] = {}
        self.searcher = OptunaSearcher(
            self.ledger, Workplace(lambda _number, lora: {"lora": lora}), Silent(), unfinished=[]
        )
        self.asked = 0
        self.start_points = median([self.suggest() for _ in range(in_flight)])

    def _draw(self) -> tuple[LoraConfiguration, dict[str, Any]]:
        draw = UniformDraw(self.generator)
        lora = self.search.space.ask(draw, self.search.training.defaults())
        return lora, draw.params

    def suggest(self) -> Cost:
        """Ask for a trial."""
        self.asked += 1
        config, cost = timed(lambda: self.searcher.suggest(str(self.asked)))
        self.configurations[str(self.asked)] = config["lora"]
        return cost

    def turn(self) -> dict[str, Cost]:
        """The oldest trial in flight reports a rung and ends, and another one is asked for."""
        trial_id, lora = next(iter(self.configurations.items()))
        del self.configurations[trial_id]
        first, *_, last = (json.dumps(measured(lora, rows).as_json()) for rows in RUNGS)
        _, rung = timed(lambda: self.searcher.judge(trial_id, {REPORT: first}))
        _, end = timed(lambda: self.searcher.on_trial_complete(trial_id, {REPORT: last}))
        return {"rung": rung, "end": end, "ask": self.suggest()}

    def fill(self, size: int) -> None:
        """Add trials that have ended, up to `size`, with the rows that a driven one leaves, in one transaction."""
        rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in INSERTS}
        there = len(read_study(self.paths.study_db).trials)
        for number in range(there, size):
            lora, params = self._draw()
            fixed = FixedTrial(params)
            self.search.space.ask(fixed, self.search.training.defaults())
            trial_id = number + 1
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
            rows["trials"].append((trial_id, number, self.ledger.study_id, "COMPLETE", now, now))
            for name, kind in fixed.distributions.items():
                internal = kind.to_internal_repr(fixed.params[name])
                rows["trial_params"].append((trial_id, name, internal, distribution_to_json(kind)))
            rows["trial_user_attributes"] += [
                (trial_id, key, json.dumps(value)) for key, value in self._attributes(lora).items()
            ]
            final = measured(lora, RUNGS[-1]).measurements
            for place, objective in enumerate(self.search.objective_list):
                rows["trial_values"].append((trial_id, place, final[objective.name], "FINITE"))
        with sqlite3.connect(self.paths.study_db) as database:
            for table, columns in INSERTS.items():
                marks = ", ".join("?" * len(columns))
                names = ", ".join(f'"{column}"' for column in columns)
                database.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows[table])  # noqa: S608
        database.close()

    @staticmethod
    def _attributes(lora: LoraConfiguration) -> dict[str, Any]:
        reports = [measured(lora, rows) for rows in RUNGS]
        return {
            study_table.CONFIGURATION: lora.model_dump(mode="json"),
            study_table.EPOCH: 1,
            **{f"{study_table.RUNG}{report.rows}": report.as_json() for report in reports},
            study_table.OUTCOME: Outcome.COMPLETE.stored,
            study_table.RESULT: reports[-1].as_json(),
        }


def growth(root: RootPaths, sizes: tuple[int, ...], turns: int, in_flight: int) -> Iterator[dict[str, Any]]:
    """Seconds per event at each size, with the sampler of the search and with uniform draws in its place."""
    driven = Driven(root.search("scale"), in_flight)
    own = driven.ledger.study.sampler
    for size in sizes:
        driven.fill(size)
        row: dict[str, Any] = {"trials": size, "in_flight": in_flight, "start point": driven.start_points}
        for name, sampler in (("sampler", own), ("uniform", RandomSampler(seed=size))):
            driven.ledger.study.sampler = sampler
            events = [driven.turn() for _ in range(turns)]
            row[name] = {key: median([event[key] for event in events]) for key in events[0]}
        row["megabytes"] = round(_bytes(driven.paths.study_db) / 1e6, 2)
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
    """A whole toy search on tiny-llama's facts: one Ray Tune trial per configuration, actors reused."""
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
