"""How often the intervals of matched contrasts hold the truth, on tables of trials that were all really trained.

Searches are replayed (see `replay.py`) for so many trials, and each contrast of neighbouring settings that their trials
support is compared with the table: both settings in the same contexts, each at its best learning rate, the mean of the
trained seeds. That truth has noise of its own, which the intervals know nothing of.

python benchmarks/findings_coverage.py --searches 12     (about four minutes on one core)
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import optuna
from players import Arena, make_player
from replay import Replay
from search_quality import start_rows
from trial_table import TABLES, TrialTable, read_table

from lorafront.search.contrasts import RATE, Evidence, Panel, evidence, interval, panel
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.objectives import OBJECTIVES
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

RESULTS = Path(__file__).resolve().parent / "results" / "findings_coverage.json"
NAMES = ("tiny-llama-shakespeare", "tiny-t5-gsm8k")
METHODS = ("mfgp/model", "random")
TRIALS = (24, 60)
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Checked:
    """A contrast beside the truth, nats.

    Attributes:
        low, middle, high: what was found.
        true: what the table says.
    """

    low: float
    middle: float
    high: float
    true: float

    @property
    def held(self) -> bool:
        """The truth lies in the interval."""
        return self.low <= self.true <= self.high

    @property
    def stated(self) -> bool:
        """The interval excludes zero."""
        return self.low > 0 or self.high < 0


def played(table: TrialTable, method: str, seed: int, trials: int) -> StudyTable:
    """What the study would have after so many trials have ended."""
    world = table.world(seed)
    records = []
    for ended in itertools.islice(
        Replay(world).play(make_player(method, Arena(world, start_rows(table), seed))), trials
    ):
        reached = [index for index, rows in enumerate(table.rungs) if rows <= ended.report.rows]
        rungs = tuple(Report(table.rungs[index], world.measured(ended.row, index)) for index in reached)
        state = "COMPLETE" if ended.report.outcome is Outcome.COMPLETE else "PRUNED"
        lora = table.configurations[ended.row]
        records.append(TrialRecord(len(records), state, lora, 1, rungs, ended.report, BEGAN, BEGAN))
    return StudyTable(table.search, tuple(records), {}, ())


def checked(table: TrialTable, study: StudyTable) -> Iterator[Checked]:
    """Every contrast that the trials support."""
    of = evidence(study, OBJECTIVES["perplexity"])
    for axis in of.axes if of else ():
        own = panel(of, axis.name) if of and axis.name != RATE else None
        for before, after in itertools.pairwise(own.usable if own else []):
            draws = own.differences((before, after)) if own else None
            if of is not None and own is not None and draws is not None:
                true = tuned(table, of, own, before, after)
                yield Checked(*interval(draws[0]), true)


def tuned(table: TrialTable, of: Evidence, own: Panel, before: int, after: int) -> float:
    """The difference in the contexts that both settings share."""
    loss = table.eval_loss[:, :, -1].mean(axis=1)

    def best(place: np.ndarray) -> float:
        nearest = {
            axis.name: axis.grid[int(np.abs(axis.places - at).argmin())]
            for axis, at in zip(of.axes, place, strict=True)
        }
        del nearest[RATE]
        return float(np.nanmin(loss[table.find(**nearest)]))

    shared = np.flatnonzero(own.tried[before] & own.tried[after])
    return float(np.mean([best(own.points[after, c]) - best(own.points[before, c]) for c in shared]))


def summary(found: Sequence[Checked]) -> dict[str, float]:
    """Of many contrasts."""
    stated = [one for one in found if one.stated]
    return {
        "contrasts": len(found),
        "held": round(float(np.mean([one.held for one in found])), 4),
        "median_width": round(float(np.median([one.high - one.low for one in found])), 4),
        "error": round(float(np.sqrt(np.mean([(one.middle - one.true) ** 2 for one in found]))), 4),
        "stated": round(len(stated) / len(found), 4),
        "wrong_sign": sum((one.middle > 0) != (one.true > 0) for one in stated),
    }


def main() -> None:
    """Replay, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=12, help="per table, sampler and number of trials")
    parser.add_argument("--tables", nargs="+", default=NAMES, help="others keep the results that they have")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    results = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else {}
    for name, method in itertools.product(chosen.tables, METHODS):
        table = read_table(TABLES / f"{name}.json")
        studies = [played(table, method, seed, max(TRIALS)) for seed in range(chosen.searches)]
        for trials in TRIALS:
            cut = [StudyTable(own.search, own.trials[:trials], {}, ()) for own in studies]
            found = [one for own in cut for one in checked(table, own)]
            results[f"{name}, {method}, {trials} trials"] = said = summary(found)
            print(f"{name}, {method}, {trials} trials: {said}", flush=True)
    chosen.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
