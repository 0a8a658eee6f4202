"""A search under random kills of its driver and its workers, until so many of each were killed; then nothing may lack.

    python benchmarks/soak.py --driver-kills 20 --worker-kills 20

A search of toy trials (the real driver, Ray, Optuna and MLflow; only the training is a formula and a pause) is run and
resumed by the command line. At random moments its driver or one of its workers gets SIGKILL. At the end the study is
compared with what the workers noted outside the system (search/nothing_lost.py) and examined by `lorafront doctor`.
Writes `benchmarks/results/soak.json`; exits 1 where a result was lost, doubled or changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import psutil

from lorafront.search.doctor_report import examined
from lorafront.search.nothing_lost import START, judge, read_witness
from lorafront.search.paths import RootPaths
from lorafront.search.study_table import read_study
from lorafront.spaces.errors import LorafrontError
from lorafront.trainables import heartbeat

RUNGS = (8, 16, 32, 64)
PROJECT = Path(__file__).parent.parent


@dataclass
class Soak:
    """One search, and what was done to it.

    Attributes:
        root: where it stands.
        trials: its budget.
        chance: draws moments and victims.
        recoveries: seconds from a resume to the first worker that trains again.
        drivers: killed.
        workers: killed.
        longest: seconds that a driver lives at most before it is killed.
    """

    root: Path
    trials: int
    chance: random.Random
    longest: float
    recoveries: list[float] = field(default_factory=list)
    drivers: int = 0
    workers: int = 0

    def write(self) -> None:
        """The search file and its text."""
        text = self.root / "text.txt"
        text.write_text("\n\n".join(topics[name] for name in sorted(topics))[:60_000], encoding="utf-8")
        data = {
            "name": "soak",
            "model": str(PROJECT / "examples" / "tiny-llama"),
            "data": {"path": str(text), "max_length": 32, "train_rows": 64, "eval_rows": 8},
            "space": {"rank": [2, 4, 8, 16], "modules": "attention", "quantization": ["nf4", "bf16"], "bias": "none"},
            "training": {"rows": RUNGS[-1], "rungs": len(RUNGS), "batch_size": 4},
            "budget": {"trials": self.trials},
            "early_stopping": "off",  # every trial comes to its end, so that all of it can be compared
            "sampler": "tpe",
        }
        (self.root / "search.yaml").write_text(json.dumps(data), encoding="utf-8")

    def start(self) -> subprocess.Popen[bytes]:
        """A driver: the first one runs, the others resume."""
        there = (self.root / "soak" / "study.db").is_file()
        what = ["resume", "soak"] if there else ["run", str(self.root / "search.yaml")]
        log = (self.root / "log.txt").open("ab")
        return subprocess.Popen(  # noqa: S603  # our own command line
            [sys.executable, "-m", "lorafront.search.cli", *what, "--root", str(self.root), "--engine", "toy"],
            stdout=log,
            stderr=log,
            env={**os.environ, "FAULT_AT": "before_train:slow", "LORAFRONT_WITNESS": str(self.witness)},
        )

    @property
    def witness(self) -> Path:
        """What the workers note."""
        return self.root / "witness.jsonl"

    def starts(self) -> int:
        """How often a worker began a trial."""
        if not self.witness.is_file():
            return 0
        return sum(line.event == START for line in read_witness(self.witness))

    def training(self) -> list[psutil.Process]:
        """Workers that hold a trial which has not ended."""
        try:
            running = read_study(self.root / "soak" / "study.db").running
        except LorafrontError:
            return []
        paths = RootPaths(self.root).search("soak")
        signs = [heartbeat.read(paths.trial(trial.number, trial.epoch).path) for trial in running]
        return [process for sign in signs if sign is not None and (process := sign.process()) is not None]

    def kill_worker(self) -> None:
        """One that trains, if any does."""
        victims = self.training()
        if victims:
            self.chance.choice(victims).kill()
            self.workers += 1

    def live(self, driver: subprocess.Popen[bytes], *, seconds: float, worker_kills: int) -> bool:
        """Let a driver work, kill some of its workers and then itself; False where it came to its end before.

        A third of the drivers die so many seconds after their start, whatever they are doing then; the others so long
        after their first trial has begun.
        """
        begun, before = time.monotonic(), self.starts()
        wait_for_trials = self.chance.random() > 1 / 3
        while wait_for_trials and self.starts() == before and driver.poll() is None:
            time.sleep(0.1)
        if wait_for_trials:
            self.recoveries.append(time.monotonic() - begun)
        moments = sorted(self.chance.uniform(0, seconds) for _ in range(worker_kills)) if wait_for_trials else []
        start = time.monotonic()
        for moment in [*moments, seconds]:
            while time.monotonic() - start < moment:
                if driver.poll() is not None:
                    return False
                time.sleep(0.05)
            if moment != seconds:
                self.kill_worker()
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        self.drivers += 1
        return True


def soak(root: Path, arguments: argparse.Namespace) -> Soak:
    """Run, kill and resume until the numbers are reached or the time is over, then once more to the end."""
    run = Soak(root, arguments.trials, random.Random(arguments.seed), arguments.seconds)  # noqa: S311  # no secret
    run.write()
    ends = time.monotonic() + 60 * arguments.minutes
    while run.drivers < arguments.driver_kills or run.workers < arguments.worker_kills:
        if time.monotonic() > ends:
            break
        left = max(1, arguments.driver_kills - run.drivers)
        some = -(-(arguments.worker_kills - run.workers) * 3 // (2 * left))
        driver = run.start()
        if not run.live(driver, seconds=run.chance.uniform(0.5, run.longest), worker_kills=max(0, some)):
            break
        print(f"{run.drivers} drivers and {run.workers} workers killed", flush=True)
    run.start().wait()
    return run


def report(run: Soak, seconds: float) -> dict[str, object]:
    """What came out, for the file."""
    table = read_study(run.root / "soak" / "study.db")
    verdict = judge(read_witness(run.witness), table, RUNGS)
    findings, _ = examined(RootPaths(run.root), "soak")
    outcomes = [trial.outcome.stored for trial in table.counted if trial.outcome]
    return {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "driver_kills": run.drivers,
        "worker_kills": run.workers,
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
        "seconds": round(seconds),
    }


def main() -> None:
    """Soak, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver-kills", type=int, default=20)
    parser.add_argument("--worker-kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60, help="budget; it must outlast the kills")
    parser.add_argument("--seconds", type=float, default=5.0, help="a driver's life at most, once it works")
    parser.add_argument("--minutes", type=float, default=60.0, help="no more kills after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "results" / "soak.json")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = report(soak(Path(folder), arguments), time.monotonic() - start)
    print(json.dumps(found, indent=2))
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if found["lost"] or found["doubled"] or found["wrong"] or found["doctor"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
