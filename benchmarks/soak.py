"""A search under random kills until each kind of process was killed so often; then nothing may lack.

    python benchmarks/soak.py                # drivers and workers, on this machine alone
    python benchmarks/soak.py --servers      # nodes, Ray's head, PostgreSQL and MLflow's server, too

A search of toy trials (the real driver, Ray, Optuna and MLflow; only the training is a formula and a pause) is run and
resumed by the command line. At random moments something gets SIGKILL (PostgreSQL: an immediate stop) and is started
again; a search that comes to its end before that is extended. At the end the study is compared with what the workers
noted outside the system (search/nothing_lost.py) and examined by `lorafront doctor`. Writes
`benchmarks/results/soak.json` or `soak_servers.json`; exits 1 where a result was lost, doubled or changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pydoc_data.topics import topics

import psutil
from servers import HEAD, MLFLOW, PROJECT, Servers, environment, served

from lorafront.search.budget import extended
from lorafront.search.doctor_report import examined
from lorafront.search.nothing_lost import judge, read_witness
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.requests import Request, send
from lorafront.search.study_table import read_study
from lorafront.spaces.errors import LorafrontError
from lorafront.trainables import heartbeat
from lorafront.trainables.witness import START

RUNGS = (8, 16, 32, 64)
NAME, TRIALS = "soak", 120  # as many more, whenever half of them are left
PAUSE = "before_train:slow"
DRIVER, WORKER, NODE, DATABASE = "driver", "worker", "node", "postgresql"
ENDING = (DRIVER, HEAD)  # after these a search has to be resumed
NODES = ("node1", "node2")


class Machine:
    """A search on this machine alone."""

    def __init__(self, root: Path) -> None:
        """Args: root: of the search."""
        self.root = root
        self.witness = root / "witness.jsonl"
        self.kills: dict[str, Callable[[], bool]] = {DRIVER: self.nothing, WORKER: self.kill_worker}
        self.chance = random.Random()  # noqa: S311  # no secret

    def environment(self) -> dict[str, str]:
        """Of a driver."""
        return environment(LORAFRONT_ROOT=str(self.root), FAULT_AT=PAUSE, LORAFRONT_WITNESS=str(self.witness))

    def nothing(self) -> bool:
        """The driver is killed by whoever started it."""
        return True

    def kill_worker(self) -> bool:
        """One that trains, if any does."""
        if victims := self._training():
            self.chance.choice(victims).kill()
        return bool(victims)

    def _training(self) -> list[psutil.Process]:
        """Workers that hold a trial which has not ended."""
        try:
            running = read_study(RootPaths(self.root).search(NAME).study_db).running
        except LorafrontError:
            return []
        paths = RootPaths(self.root).search(NAME)
        signs = [heartbeat.read(paths.trial(trial.number, trial.epoch).path) for trial in running]
        return [process for sign in signs if sign is not None and (process := sign.process()) is not None]


class Cluster(Machine):
    """A search on servers."""

    def __init__(self, servers: Servers) -> None:
        """Args: servers: that run."""
        super().__init__(servers.folder / "root")
        self._servers = servers
        self.witness = servers.witness
        self.kills |= {
            NODE: self.kill_node,
            HEAD: self.kill_head,
            DATABASE: self.kill_database,
            MLFLOW: self.kill_mlflow,
        }

    def environment(self) -> dict[str, str]:
        """Of a driver."""
        return self._servers.driver()

    def kill_node(self) -> bool:
        """One of them; its successor joins some seconds later."""
        name = self.chance.choice(NODES)
        self._servers.kill(name)
        time.sleep(self.chance.uniform(0, 5))
        self._servers.start_node(name, 1)
        return True

    def kill_head(self) -> bool:
        """With which all of the cluster ends, the driver too."""
        self._servers.kill(HEAD)
        for name in NODES:
            self._servers.kill(name)
        self._servers.start_head()
        for name in NODES:
            self._servers.start_node(name, 1)
        return True

    def kill_database(self) -> bool:
        """It is back some seconds later."""
        self._servers.postgres.do("crash")
        time.sleep(self.chance.uniform(0, 5))
        self._servers.postgres.start()
        return True

    def kill_mlflow(self) -> bool:
        """It is started at once, and answers when it can."""
        self._servers.kill(MLFLOW)
        self._servers.start_mlflow()
        return True


class Soak:
    """One search, and what was done to it."""

    def __init__(self, machine: Machine, kills: int, longest: float) -> None:
        """Nothing was done.

        Args:
            machine: where it runs.
            kills: of each kind.
            longest: seconds that a driver lives at most before it is killed.
        """
        self.machine = machine
        self.killed: Counter[str] = Counter()
        self.recoveries: list[float] = []  # seconds from a driver's start to the first worker that trains
        self.gave_up: Counter[int] = Counter()  # exit codes of drivers that ended by themselves, and not at the end
        self.stuck = 0  # drivers that did not end with their cluster
        self._goal, self._longest = kills, longest

    def write(self) -> None:
        """The search file and its text."""
        root = self.machine.root
        root.mkdir(mode=0o700, exist_ok=True)
        text = root / "text.txt"
        text.write_text("\n\n".join(topics[name] for name in sorted(topics))[:60_000], encoding="utf-8")
        data = {
            "name": NAME,
            "model": str(PROJECT / "examples" / "tiny-llama"),
            "data": {"path": str(text), "max_length": 32, "train_rows": 64, "eval_rows": 8},
            "space": {"rank": [2, 4, 8, 16], "modules": "attention", "quantization": ["nf4", "bf16"], "bias": "none"},
            "training": {"rows": RUNGS[-1], "rungs": len(RUNGS), "batch_size": 4},
            "budget": {"trials": TRIALS},
            "early_stopping": "off",  # every trial comes to its end, so that all of it can be compared
            "sampler": "tpe",
        }
        (root / "search.yaml").write_text(json.dumps(data), encoding="utf-8")

    def lacking(self, kinds: Sequence[str]) -> list[str]:
        """Those of which more have to be killed, one entry for each."""
        return [kind for kind in kinds for _ in range(self._goal - self.killed[kind])]

    @property
    def lacks(self) -> bool:
        """Whether anything has to be killed more often."""
        return bool(self.lacking([*self.machine.kills]))

    def start(self) -> subprocess.Popen[bytes]:
        """A driver: the first one runs, the others resume."""
        there = self._paths.has_study()
        what = ["resume", NAME] if there else ["run", str(self.machine.root / "search.yaml")]
        with (self.machine.root / "log.txt").open("ab") as log:
            return subprocess.Popen(  # noqa: S603  # our own command line
                [sys.executable, "-m", "lorafront.search.cli", *what, "--engine", "toy"], stdout=log, stderr=log,
                env=self.machine.environment(), cwd=self.machine.root,
            )  # fmt: skip

    def live(self, driver: subprocess.Popen[bytes]) -> bool:
        """Let a driver work, kill some of what it works with, and then what ends it; False where it came to its end.

        A third of the drivers die so many seconds after their start, whatever they are doing then; the others so long
        after their first trial has begun.
        """
        kills, chance = self.machine.kills, self.machine.chance
        begun, before, waits = time.monotonic(), self._starts(), chance.random() > 1 / 3
        while waits and self._starts() == before and driver.poll() is None:
            time.sleep(0.1)
        if waits and driver.poll() is None:
            self.recoveries.append(time.monotonic() - begun)
        ends = self.lacking([kind for kind in kills if kind in ENDING])
        others = self.lacking([kind for kind in kills if kind not in ENDING])
        some = -(-len(others) * 3 // (2 * max(1, len(ends)))) if waits else 0
        for kind in [*chance.sample(others, min(some, len(others))), chance.choice(ends or [DRIVER])]:
            self._go_on()
            until = time.monotonic() + chance.uniform(0.2, self._longest)
            while time.monotonic() < until:
                if driver.poll() is not None:
                    self.gave_up[driver.returncode] += driver.returncode != 0
                    return driver.returncode != 0
                time.sleep(0.05)
            if kind == DRIVER:
                driver.kill()
            self.killed[kind] += kills[kind]()
        try:
            driver.wait(120)  # one whose cluster is gone notices that
        except subprocess.TimeoutExpired:
            self.stuck += 1
            driver.kill()
            driver.wait()
        return True

    @property
    def _paths(self) -> SearchPaths:
        return RootPaths(self.machine.root).search(NAME)

    def _starts(self) -> int:
        """How often a worker began a trial."""
        file = self.machine.witness
        return sum(line.event == START for line in read_witness(file)) if file.is_file() else 0

    def _go_on(self) -> None:
        """Ask a driver for more trials before it comes to its end."""
        with suppress(LorafrontError):  # the database is away, or there is no study yet
            table = read_study(self._paths.study_db)
            if len(table.counted) > (table.search.budget.trials or 0) - TRIALS // 2:
                more = extended(table.search.budget, {"trials": TRIALS}, table.spent)
                send(self._paths, Request(kind="extend", budget=more))


def soak(machine: Machine, arguments: argparse.Namespace) -> Soak:
    """Run, kill and resume until the numbers are reached or the time is over, then once more to the end."""
    machine.chance.seed(arguments.seed)
    run = Soak(machine, arguments.kills, arguments.seconds)
    run.write()
    ends = time.monotonic() + 60 * arguments.minutes
    while run.lacks and time.monotonic() < ends and run.live(run.start()):
        print(f"{(arguments.minutes * 60 - ends + time.monotonic()):.0f} s", dict(run.killed), flush=True)
    run.start().wait()
    return run


def report(run: Soak, seconds: float) -> dict[str, object]:
    """What came out, for the file."""
    root = RootPaths(run.machine.root)
    table = read_study(root.search(NAME).study_db)
    verdict = judge(read_witness(run.machine.witness), table, RUNGS)
    findings, _ = examined(root, NAME)
    outcomes = [trial.outcome.stored for trial in table.counted if trial.outcome]
    return {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "kills": dict(run.killed),
        "trials": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "lost": list(verdict.lost),
        "doubled": list(verdict.doubled),
        "wrong": list(verdict.wrong),
        "doctor": [finding.what for finding in findings],
        "restarts_of_trials": verdict.restarts,
        "reworked_rows_at_most": verdict.reworked,
        "rows_of_a_trial": RUNGS[-1],
        "seconds_to_recover": {
            "median": round(statistics.median(run.recoveries), 1) if run.recoveries else None,
            "longest": round(max(run.recoveries), 1) if run.recoveries else None,
        },
        "drivers_that_gave_up": {str(code): count for code, count in run.gave_up.items() if count},
        "drivers_that_hung": run.stuck,
        "seconds": round(seconds),
    }


@contextmanager
def machine_for(*, servers: bool) -> Iterator[Machine]:
    """What the search runs on."""
    if servers:
        with served(len(NODES), 1, fault=PAUSE) as found:
            os.environ.update(found.driver())  # to read the study
            yield Cluster(found)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Machine(Path(folder))


def main() -> None:
    """Soak, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", action="store_true")
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="between two kills at most")
    parser.add_argument("--minutes", type=float, default=90.0, help="no more kills after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    name = "soak_servers.json" if arguments.servers else "soak.json"
    out = arguments.out or PROJECT / "benchmarks" / "results" / name
    start = time.monotonic()
    with machine_for(servers=arguments.servers) as machine:
        run = soak(machine, arguments)
        found = {"seed": arguments.seed, **report(run, time.monotonic() - start)}
    print(json.dumps(found, indent=2))
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if found["lost"] or found["doubled"] or found["wrong"] or found["doctor"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
