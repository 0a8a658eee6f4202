"""Where the CPU time of a search goes that keeps 16 trials in training: `packed.py --through-ray`.

One search of 50-step trials of the tiny model runs in this process, as `lorafront run` would. CPU seconds, not wall
clock: of the driver by what it was doing (Optuna, MLflow, the searcher and scheduler of lorafront, the rest of Ray
Tune), of Ray's own processes, and of the workers. Of a part that calls another one its own share is shown. What the
engine took of the workers is their own clock, which runs on while somebody else has the core.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

TRIALS, STEPS, SLOTS = 64, 50, 16
GOAL_MS = 50.0  # per trial at 16 slots on two cores: Ray's, Tune's and our own, without the engine's steps
ENGINE = ("setup_seconds", "train_seconds", "eval_seconds")


class Meter:
    """CPU seconds of this process by part; a part that is called from another one does not count in that one."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        """Nothing was measured; `clock` may be another one."""
        self._clock = clock
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = threading.local()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Measure a method of a class from now on."""
        method: Callable[..., Any] = getattr(owner, name)

        @wraps(method)
        def measured(*arguments: Any, **named: Any) -> Any:
            outer, self._inside.seconds = getattr(self._inside, "seconds", 0.0), 0.0
            start = self._clock()
            try:
                return method(*arguments, **named)
            finally:
                whole = self._clock() - start
                self.seconds[part] += whole - self._inside.seconds
                self._inside.seconds = outer + whole

        setattr(owner, name, measured)

    def wrap_public(self, owner: Any, part: str) -> None:
        """All methods of a class that have a public name of its own."""
        for name, member in list(vars(owner).items()):
            if callable(member) and not name.startswith("_") and not isinstance(member, (type, classmethod)):
                self.wrap(owner, name, part)


class Processes:
    """CPU seconds of the processes below this one, as last seen of each."""

    def __init__(self) -> None:
        """Start to look, once a second."""
        self.seen: dict[tuple[int, float], tuple[str, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        import psutil

        while not self._stop.wait(1.0):
            for process in psutil.Process().children(recursive=True):
                try:
                    times = process.cpu_times()
                    key = process.pid, process.create_time()
                    self.seen[key] = (" ".join(process.cmdline()) or process.name(), times.user + times.system)
                except psutil.Error:
                    continue

    def stop(self) -> tuple[float, float]:
        """(CPU seconds of the workers, of Ray's own processes)."""
        self._stop.set()
        self._thread.join()
        workers = sum(seconds for name, seconds in self.seen.values() if "Trainable" in name or "ray::Pack" in name)
        return workers, sum(seconds for _, seconds in self.seen.values()) - workers


def mapping(folder: Path) -> dict[str, Any]:
    """The search file."""
    from pydoc_data.topics import topics

    text = folder / "text.txt"
    text.write_text("\n\n".join(topics[name] for name in sorted(topics))[:60_000], encoding="utf-8")
    return {
        "name": "through-ray",
        "model": str(Path(__file__).resolve().parent.parent / "examples" / "tiny-llama"),
        "data": {"path": str(text), "max_length": 64, "eval_rows": 32},
        "space": {
            "rank": [4, 8, 16, 32], "alpha": {"ratio": 2}, "modules": ["query+value", "attention"],
            "quantization": "bf16", "dropout": 0.0, "bias": "none",
            "learning_rate": {"low": 1e-3, "high": 2e-2, "log": True},
        },
        "training": {"steps": STEPS, "rungs": 2, "batch_size": 4},
        "budget": {"trials": TRIALS},
        "resources": {"slots": SLOTS},
        "engine": "packed",
        "early_stopping": "off",
        "sampler": "tpe",
        "start_points": {"recommended": False},
    }  # fmt: skip


def report() -> str:
    """Run the search; what a person reads."""
    import lorafront.search.environment  # noqa: F401  # before Ray and MLflow
    from lorafront.search import mlflow_tracker
    from lorafront.search.optuna_searcher import OptunaSearcher
    from lorafront.search.pareto_scheduler import ParetoScheduler
    from lorafront.search.paths import RootPaths
    from lorafront.search.run import run_search
    from lorafront.search.search_file import parse_search
    from lorafront.search.study import StudyLedger

    meter = Meter()
    meter.wrap_public(StudyLedger, "Optuna")
    meter.wrap(mlflow_tracker.Projection, "update", "MLflow")
    meter.wrap_public(OptunaSearcher, "lorafront")
    meter.wrap_public(ParetoScheduler, "lorafront")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="through-ray-") as scratch:
        folder = Path(scratch)
        processes = Processes()
        marks: list[tuple[float, float]] = []
        began = _mark_tuning(marks)
        try:
            table = run_search(parse_search(mapping(folder)), RootPaths(folder / "runs"))
        finally:
            began()
        workers, ray = processes.stop()
    (start, end), *_ = marks
    tuning = end - start
    count = len(table.counted)
    engine = sum(float(trial.measurements.get(name) or 0) for trial in table.counted for name in ENGINE)
    in_tune = meter.seconds["lorafront"] + meter.seconds["Optuna"]
    rows = {
        "driver: Ray Tune": max(0.0, tuning - in_tune),
        "driver: lorafront's searcher and scheduler": meter.seconds["lorafront"],
        "driver: Optuna": meter.seconds["Optuna"],
        "driver: MLflow": meter.seconds["MLflow"],
        "driver: before and after (imports, checks)": time.process_time() - tuning - meter.seconds["MLflow"],
        "Ray's own processes": ray,
        "workers": workers,
        "  the engine there, by its own clock": engine,
    }
    goal = rows["driver: Ray Tune"] + rows["driver: lorafront's searcher and scheduler"]
    engines = {str(trial.measurements.get("engine")) for trial in table.counted}
    lines = [f"{count} trials of {STEPS} steps, {SLOTS} slots, engine: {', '.join(sorted(engines))}; CPU ms per trial"]
    lines += [f"  {name:46}{1000 * seconds / count:9.1f}" for name, seconds in rows.items()]
    lines.append(f"Ray Tune and lorafront in the driver: {1000 * goal / count:.1f} (goal: at most {GOAL_MS:g})")
    return "\n".join([*lines, json.dumps({"ms_per_trial": {n: 1000 * s / count for n, s in rows.items()}})])


def _mark_tuning(marks: list[tuple[float, float]]) -> Callable[[], None]:
    """Note the CPU time of the main thread at both ends of `Tuner.fit`; returns what undoes that."""
    from ray import tune

    fit = tune.Tuner.fit

    @wraps(fit)
    def measured(self: Any) -> Any:
        start = time.thread_time()
        try:
            return fit(self)
        finally:
            marks.append((start, time.thread_time()))

    tune.Tuner.fit = measured

    def undo() -> None:
        tune.Tuner.fit = fit

    return undo
