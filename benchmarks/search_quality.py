"""How soon each method finds the front, on tables of trials that were all really trained.

Every method is replayed over many seeds (see `replay.py`) until the hypervolume of what it trained in full has closed
90 % of the gap between the recommended default and the true front, and has reached 95 % of the true front's. Cost is
worker seconds, also in full trainings (the mean of the table). Each simulated search has a table of its own, in which
every configuration has the curve of one of its trained seeds (`TrialTable.world`), and its own true front.

python benchmarks/search_quality.py --table tiny-llama-shakespeare --jobs 2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from moocore import hypervolume, is_nondominated
from players import NEEDS, PEERS, Arena, make_player
from replay import Replay
from synthetic_table import synthetic_table
from trial_table import TABLES, Floats, TrialTable, read_table

from lorafront.trainables.outcome import Outcome

RESULTS = Path(__file__).resolve().parent / "results"
SYNTHETIC = "synthetic"
GAP_SHARE, FRONT_SHARE = 0.9, 0.95
MARGIN = 0.05  # of the table's range, by which the reference point lies beyond its worst
RESAMPLES = 2000
LEVEL = (2.5, 97.5)  # percentiles of the intervals
OURS = ("tpe/off", "tpe/rungs", "mfgp/off", "mfgp/rungs", "mfgp/model")
GOALS = {"grid": 0.2, "optunasearch": 0.5, "best peer": 0.7}  # our cost over theirs, at most

# Rank, alpha / rank, modules, quantization: the recommended default, then what guides recommend for 6-8, over 16, 8-12
# and 12-16 GB, in the order of the shipped presets. Each at the middle learning rate of the table, because the presets'
# rates are those of large models.
START = (
    (16, 2, "attention", "nf4"),
    (8, 2, "query+value", "nf4"),
    (64, 2, "attention+mlp", "bf16"),
    (16, 1, "attention+mlp", "nf4"),
    (16, 1, "attention", "int8"),
)


# ---------------------------------------------------------------- what is to be reached


@dataclass(frozen=True)
class Target:
    """Hypervolumes to reach, in nats times GiB.

    Attributes:
        points: [C, 2], final loss (nats per token) and peak memory (GiB); NaN loss where a training diverged.
        reference: the corner up to which the hypervolume counts.
        front: rows of the true front.
        default: hypervolume of the recommended default alone.
        full: hypervolume of the true front.
    """

    points: Floats
    reference: tuple[float, float]
    front: frozenset[int]
    default: float
    full: float

    def volume(self, rows: Iterable[int]) -> float:
        """Hypervolume of these rows."""
        return _volume(self.points[list(rows)], self.reference)

    @property
    def gap(self) -> float:
        """Hypervolume at which `GAP_SHARE` of the gap is closed."""
        return self.default + GAP_SHARE * (self.full - self.default)

    @property
    def share(self) -> float:
        """Hypervolume that is `FRONT_SHARE` of the front's."""
        return FRONT_SHARE * self.full


def _volume(points: Floats, reference: tuple[float, float]) -> float:
    inside = points[(points < reference).all(axis=1)]
    return float(hypervolume(inside, ref=reference)) if len(inside) else 0.0


def corner(table: TrialTable, limit_gb: float = math.inf) -> tuple[float, float]:
    """The reference point: a little beyond the worst loss and the largest memory of all seeds."""
    allowed = table.peak_vram_gb <= limit_gb
    losses = table.eval_loss[allowed, :, -1]
    return _beyond(losses[np.isfinite(losses)]), _beyond(table.peak_vram_gb[allowed])


def target(world: TrialTable, default: int, reference: tuple[float, float], limit_gb: float = math.inf) -> Target:
    """What a search can reach.

    Args:
        world: the trials, of one seed.
        default: row of the recommended default.
        reference: see `corner`.
        limit_gb: what a trial may need at most, GiB.
    """
    losses, memory = world.eval_loss[:, 0, -1], world.peak_vram_gb
    allowed = memory <= limit_gb
    points = np.column_stack([losses, memory])
    usable = np.flatnonzero(allowed & np.isfinite(losses))
    front = usable[is_nondominated(points[usable], keep_weakly=True)]
    alone = _volume(points[[default]], reference) if allowed[default] else 0.0
    return Target(points, reference, frozenset(front.tolist()), alone, _volume(points[front], reference))


def _beyond(values: Floats) -> float:
    return float(values.max() + MARGIN * (values.max() - values.min()))


def start_rows(table: TrialTable) -> tuple[int, ...]:
    """The start points that the table has, the recommended default first.

    Raises:
        ValueError: it lacks the default.
    """
    rates = sorted({lora.learning_rate for lora in table.configurations})
    middle = rates[len(rates) // 2]
    found = [
        table.find(rank=rank, alpha_ratio=ratio, modules=modules, quantization=quantization, learning_rate=middle)
        for rank, ratio, modules, quantization in START
    ]
    if not found[0]:
        raise ValueError("the table lacks the recommended default: rank 16, alpha 32, attention, nf4")
    return tuple(row for rows in found for row in rows)


# ---------------------------------------------------------------- one simulated search


@dataclass(frozen=True)
class Settings:
    """What all searches have in common.

    Attributes:
        table: its name.
        workers: trials at once.
        cap: full trainings after which a search is given up.
        limit: share of the table's configurations that a memory limit lets through; 1 is no limit.
        ahead: configurations asked for before a worker is free.
    """

    table: str
    workers: int
    cap: float
    limit: float = 1.0
    ahead: int = 0


@dataclass(frozen=True)
class Run:
    """One simulated search.

    Attributes:
        seed: of the method and of its world.
        gap: worker seconds until 90 % of the gap was closed; infinite where it never was.
        front: worker seconds until 95 % of the front's hypervolume.
        spent: worker seconds until both were reached, or the end.
        trials: that ended.
        stopped: of them, by early stopping.
        lost: configurations of the true front that were stopped.
        over: trials over the memory limit.
        asking: real seconds that the method took to decide, on average per trial.
    """

    seed: int
    gap: float
    front: float
    spent: float
    trials: int
    stopped: int
    lost: int
    over: int
    asking: float


def load(name: str) -> TrialTable:
    """A table by the name of its file, or the synthetic one."""
    return synthetic_table() if name == SYNTHETIC else read_table(TABLES / f"{name}.json")


def limit_of(table: TrialTable, share: float) -> float:
    """Peak memory that this share of the configurations stays within, GiB."""
    return math.inf if share >= 1 else float(np.quantile(table.peak_vram_gb, share))


def simulate(table: TrialTable, method: str, seed: int, settings: Settings) -> Run:
    """One search, until it has reached both targets, spent its cap, or tried as often as there are configurations."""
    limit = limit_of(table, settings.limit)
    start = start_rows(table)
    world = table.world(seed)
    goal = target(world, start[0], corner(table, limit), limit)
    start = tuple(row for row in start if table.peak_vram_gb[row] <= limit)
    began = time.perf_counter()
    player = make_player(method, Arena(world, start, seed, limit))
    cap = settings.cap * float(table.full_seconds.mean())
    gap = front = math.inf
    volume = spent = 0.0
    trials = stopped = over = 0
    complete: list[int] = []
    lost: set[int] = set()
    for ended in Replay(world, settings.workers, limit, settings.ahead).play(player):
        spent = ended.spent
        trials += 1
        stopped += ended.report.outcome is Outcome.STOPPED
        over += ended.report.outcome is Outcome.CUDA_OOM
        if ended.report.outcome is Outcome.STOPPED:
            lost |= goal.front & {ended.row}
        if ended.report.outcome is Outcome.COMPLETE:
            complete.append(ended.row)
            volume = goal.volume(complete)
        gap = min(gap, spent) if volume >= goal.gap else gap
        front = min(front, spent) if volume >= goal.share else front
        if max(gap, front) < math.inf or spent > cap or trials == len(table):
            break
    asking = (time.perf_counter() - began) / max(1, trials)
    return Run(seed, gap, front, spent, trials, stopped, len(lost), over, asking)


# ---------------------------------------------------------------- many


def play_all(methods: Sequence[str], seeds: int, settings: Settings, jobs: int) -> Iterator[tuple[str, list[Run]]]:
    """Every method over every seed, a method at a time; `jobs` processes."""
    with ProcessPoolExecutor(jobs, initializer=_begin, initargs=(settings,)) as pool:
        for method in methods:
            yield method, list(pool.map(_simulate, [(method, seed) for seed in range(seeds)]))


_state: dict[str, Any] = {}  # of a worker process


def _begin(settings: Settings) -> None:
    _state.update(settings=settings, table=load(settings.table))


def _simulate(task: tuple[str, int]) -> Run:
    method, seed = task
    return simulate(_state["table"], method, seed, _state["settings"])


@dataclass(frozen=True)
class Estimate:
    """A median and its bootstrap interval."""

    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Median over seeds; infinity stands for what was never reached."""
    sample = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(sample), size=(RESAMPLES, len(sample)))
    low, high = (float(np.quantile(_medians(sample[draws]), p / 100, method="nearest")) for p in LEVEL)
    return Estimate(float(_medians(sample[None])[0]), low, high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Ratio of two medians over the same seeds, resampled together."""
    pairs = np.column_stack([ours, theirs]).astype(np.float64)
    draws = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))

    def of(sample: Floats) -> Floats:
        top, bottom = _medians(sample[..., 0]), _medians(sample[..., 1])
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(top), np.inf, top / bottom)

    low, high = (float(np.quantile(of(pairs[draws]), p / 100, method="nearest")) for p in LEVEL)
    return Estimate(float(of(pairs[None])[0]), low, high)


def _medians(sample: Floats) -> Floats:
    """The upper median of each row: with infinities there is no mean of two."""
    middle: Floats = np.sort(sample, axis=-1)[..., sample.shape[-1] // 2]
    return middle


# ---------------------------------------------------------------- output


def summary(runs: Sequence[Run], unit: float, front_size: float) -> dict[str, Any]:
    """What is told of a method; costs in full trainings of `unit` worker seconds.

    Args:
        runs: of all seeds.
        unit: worker seconds of a full training.
        front_size: configurations on the true front, on average over the seeds.
    """
    trials = sum(run.trials for run in runs)
    return {
        "gap": asdict(estimate([run.gap / unit for run in runs])),
        "front": asdict(estimate([run.front / unit for run in runs])),
        "never_gap": _never(runs),
        "never_front": float(np.mean([math.isinf(run.front) for run in runs])),
        "stopped": sum(run.stopped for run in runs) / trials,
        "lost": float(np.mean([run.lost for run in runs])) / front_size,
        "over": sum(run.over for run in runs) / trials,
        "trials": trials / len(runs),
        "asking": float(np.mean([run.asking for run in runs])),
    }


HEAD = f"{'method':18} {'90 % of the gap':>20} {'95 % of front':>15} {'never':>6} {'lost':>5} {'over':>5} {'s/ask':>6}"


LEGEND = """\
never: seeds that did not close 90 % of the gap before the search was given up
lost: configurations of the true front that were stopped early
over: trials that were started over the memory limit; s/ask: real seconds to decide, per trial
"""


def line(method: str, told: dict[str, Any]) -> str:
    """One row of at most 80 columns."""
    gap, front = told["gap"], told["front"]
    interval = f"{_short(gap['median'])} ({_short(gap['low'])}-{_short(gap['high'])})"
    return (
        f"{method:18} {interval:>20} {_short(front['median']):>15} {told['never_gap']:>6.0%} {told['lost']:>5.0%} "
        f"{told['over']:>5.0%} {told['asking']:>6.3f}"
    )


def _short(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:.1f}"


def goals(runs: dict[str, list[Run]], whole_grid: float, cap: float) -> list[str]:
    """How ours compare with the goals, by the cost of closing 90 % of the gap.

    Args:
        runs: by method.
        whole_grid: worker seconds of training everything.
        cap: worker seconds after which a search was given up; a rival that never got there is taken to cost as much,
            so that the ratio is an upper bound.
    """
    peers = {name: found for name, found in runs.items() if name in PEERS and name != "grid"}
    rivals = {"whole grid": ([whole_grid], "grid")}
    if "optunasearch" in peers:
        rivals["optunasearch"] = ([run.gap for run in peers["optunasearch"]], "optunasearch")
    if peers:
        best = min(peers, key=lambda name: (estimate([run.gap for run in peers[name]]).median, _never(peers[name])))
        rivals[f"the best peer, {best}"] = ([run.gap for run in peers[best]], "best peer")
    lines = []
    for name, found in runs.items():
        for rival, (costs, goal) in rivals.items() if name not in PEERS else ():
            ours = [run.gap for run in found]
            theirs = [cap if math.isinf(cost) else cost for cost in costs]
            known = ratio(ours, theirs * (len(ours) // len(theirs)))
            bound = "at most " if math.isinf(estimate(costs).median) else ""
            verdict = "reached" if known.median <= GOALS[goal] else "missed"
            lines.append(
                f"{name}: {bound}{known.median:.2f} ({known.low:.2f}-{known.high:.2f}) of {rival}; "
                f"goal {GOALS[goal]:g}: {verdict}"
            )
    return lines


def _never(runs: Sequence[Run]) -> float:
    """Share that never closed the gap."""
    return float(np.mean([math.isinf(run.gap) for run in runs]))


def _read(path: Path, settings: dict[str, Any]) -> dict[str, list[Run]]:
    """Runs of an earlier call with the same settings."""
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["settings"] != settings:
        return {}
    return {name: [_run(raw) for raw in method["runs"]] for name, method in kept["methods"].items()}


def _run(raw: dict[str, Any]) -> Run:
    return Run(**{name: math.inf if value is None else value for name, value in raw.items()})


def _write(path: Path, settings: dict[str, Any], runs: dict[str, list[Run]], told: dict[str, Any]) -> None:
    """One line per seed, so that a diff is readable; what was never reached is null."""
    methods = ",\n".join(
        f'  {json.dumps(name)}: {{"summary": {_json(told[name])}, "runs": [\n   '
        + ",\n   ".join(_json(asdict(run)) for run in found)
        + "]}"
        for name, found in runs.items()
    )
    text = f'{{\n "settings": {json.dumps(settings)},\n "methods": {{\n{methods}\n }}\n}}\n'
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _json(value: Any) -> str:
    def plain(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: plain(inner) for key, inner in found.items()}
        if isinstance(found, float):
            return float(f"{found:.5g}") if math.isfinite(found) else None
        return found

    return json.dumps(plain(value))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default=SYNTHETIC, help=f"file in {TABLES.name}/ without .json, or {SYNTHETIC}")
    parser.add_argument(
        "--methods", nargs="+", default=[*PEERS, *OURS],
        help=f"{', '.join(PEERS)}, or SAMPLER/EARLY_STOPPING for ours; default: all",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=50, help="simulated searches per method")
    parser.add_argument("--workers", type=int, default=4, help="trials at once")
    parser.add_argument("--cap", type=float, default=120, help="full trainings after which a search is given up")
    parser.add_argument(
        "--limit", type=float, default=1.0, help="share of the configurations that a memory limit lets through"
    )
    parser.add_argument("--ahead", type=int, default=0, help="configurations asked for before a worker is free")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="JSON; what stands there for other methods is kept")
    return parser.parse_args()


def main() -> None:
    """Replay, print as methods end, write everything."""
    asked = arguments()
    settings = Settings(asked.table, asked.workers, asked.cap, asked.limit, asked.ahead)
    limited = "" if settings.limit >= 1 else f"-limit{settings.limit:g}"
    out = asked.out or RESULTS / f"search_quality-{settings.table}{limited}.json"
    table = load(settings.table)
    unit = float(table.full_seconds.mean())
    limit, start = limit_of(table, settings.limit), start_rows(table)
    goal = [target(table.world(seed), start[0], corner(table, limit), limit) for seed in range(asked.seeds)]
    front_size = float(np.mean([len(found.front) for found in goal]))
    print(f"{len(table)} configurations, front of {front_size:g}; a full training takes {unit:.2f} worker seconds")
    print(f"default alone: {np.mean([found.default / found.full for found in goal]):.0%} of the front's hypervolume")
    print(f"{asked.seeds} seeds, {settings.workers} workers; cost in full trainings, median (95 % interval)\n")
    print(HEAD)
    described = asdict(settings) | {"seeds": asked.seeds, "unit_seconds": unit, "grid_seconds": unit * len(table)}
    runs = _read(out, described)
    playable = [method for method in asked.methods if find_spec(NEEDS.get(method, "lorafront")) is not None]
    for method in asked.methods:
        if method not in playable:
            print(f"{method} is left out: it needs {NEEDS[method]}")
    for method, found in play_all(playable, asked.seeds, settings, asked.jobs):
        runs[method] = found
        told = {name: summary(each, unit, front_size) for name, each in runs.items()}
        print(line(method, told[method]), flush=True)
        _write(out, described, runs, told)
    print(f"\n{LEGEND}")
    print("\n".join(goals(runs, float(table.full_seconds.sum()), settings.cap * unit)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
