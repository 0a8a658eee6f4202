"""What a front is compared with beside the user's own recipe: the recommended default, and full fine-tuning. Pure.

Each is trained with the seeds of the replicates, on the same rows, in a search of its own, `NAME-compare`; differences
are paired by seed. A front has tuned its learning rate, so that of full fine-tuning is tuned too: three are tried, and
further ones while the last of them is the best on the search's own rows; the rows that it never saw choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lorafront.search.confirmation import Confirmation, replicated, seeds_of
from lorafront.search.front import axes_of, front_of
from lorafront.search.judged import Confirmed, Judged, Replicated, of_trial
from lorafront.search.search_file import Baseline, Confirm, FullTuning, SearchFile
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.lora import LoraConfiguration, resolve
from lorafront.spaces.objectives import minimized
from lorafront.spaces.parameters import Range
from lorafront.spaces.presets import PRESETS
from lorafront.spaces.quantization import UNQUANTIZED
from lorafront.trainables.data import SEARCHED

# Full fine-tuning is best at about a tenth of LoRA's learning rate (Schulman et al. 2025, LoRA Without Regret), and
# nobody knows how nearly for this model: so many steps below and above it, two of them a factor of ten.
STEPS, FIRST_STEPS = range(-4, 5), (-1, 0, 1)
NOWHERE = -1  # number of a baseline: it is a trial of no search
RATES = {"low": 1e-10, "high": 1e3, "log": True}


@dataclass(frozen=True)
class Compared:
    """One baseline.

    Attributes:
        name: which.
        lora: its configuration; of full fine-tuning with the learning rate that was chosen.
        entry: what its replicates measured; None where none came to its end.
        ended: how those that did not come to their end ended, in words.
        waiting: replicates that are still to be trained, as far as that is known.
        hours_again: what the command that trains them needs (`StudyTable.hours_again`).
        differences: by trial that is worth choosing and by objective, how much larger it is than this baseline at the
            same seeds, on the scale of the objective, and half the width of the interval.
    """

    name: Baseline
    lora: LoraConfiguration
    entry: Confirmed | None
    ended: tuple[str, ...] = ()
    waiting: int = 0
    hours_again: str = ""
    differences: Mapping[int, Mapping[str, tuple[float, float]]] = field(default_factory=dict)


def defaults_of(search: SearchFile) -> dict[str, Any]:
    """What a baseline takes from the search beside its own values: what its training, or its space, has fixed."""
    defaults, fixed = search.training.defaults(), search.space.parameters()
    return {
        name: values[0] if name in fixed and len(values := _choices(fixed[name])) == 1 else value
        for name, value in defaults.items()
    }


def middle_of(table: StudyTable) -> float:
    """A tenth of the front's learning rate, about which those of full fine-tuning are tried."""
    rates = [math.log(trial.lora.learning_rate) for trial in front_of(table)]
    return math.exp(sum(rates) / len(rates)) / 10


def configurations(table: StudyTable, name: Baseline, full: FullTuning) -> list[LoraConfiguration]:
    """What may be tried of a baseline: one configuration, or one for each learning rate, the lowest first.

    Args:
        table: the search.
        name: which.
        full: of full fine-tuning. A front that moves later does not move it.
    """
    defaults = defaults_of(table.search)
    if name == "default":
        point = dict(PRESETS[0].point)
        return [resolve({**point, "alpha": point["alpha"]["ratio"] * point["rank"]}, defaults)]
    whole = {"method": "full", "quantization": full.quantization}
    rates = [float(f"{full.learning_rate * 10 ** (step / 2):.2g}") for step in STEPS]
    return [resolve({**whole, "learning_rate": rate}, defaults) for rate in rates]


def stored(search: SearchFile) -> list[str]:
    """How the weights of a full fine-tuning may be stored: first as the search has those that are not quantized."""
    kinds = [str(kind) for kind in _choices(search.space.quantization) if kind in UNQUANTIZED]
    return list(dict.fromkeys([*kinds, *UNQUANTIZED]))


def space_of(table: StudyTable, seeds: Sequence[int], full: FullTuning) -> dict[str, Any]:
    """A space that has every baseline with every seed, as a search file says it.

    What speaks of adapters is the default's alone: full fine-tuning has none, whatever is drawn.
    """
    (default,) = configurations(table, "default", full)
    return {
        **{name: getattr(default, name) for name in ("rank", "modules", "dropout", "bias")},
        "alpha": {"absolute": default.alpha},
        "quantization": [default.quantization, full.quantization],
        "method": ["lora", "full"],
        "learning_rate": RATES,
        "seed": {"low": seeds[0], "high": seeds[-1]},
    }


def _choices(parameter: Any) -> list[Any]:
    """Of one value, a list, or a range, which is none."""
    if isinstance(parameter, Range):
        return []
    return parameter if isinstance(parameter, list) else [parameter]


def following(table: StudyTable, own: StudyTable | None, confirm: Confirm) -> list[LoraConfiguration]:
    """What to train next; none where every baseline has its replicates, or cannot get them.

    Args:
        table: the search.
        own: the replicates of the baselines so far.
        confirm: which baselines, and how many seeds.
    """
    seeds = seeds_of(table, confirm.seeds)
    found: list[LoraConfiguration] = []
    for name in confirm.baselines:
        tried = _tried(table, own, name, confirm)
        unseen = [lora.with_seed(seeds[0]) for lora, member in tried.items() if not _saw(member, seeds[0])]
        if len(tried) == 1 or not (unseen or any(member and member.running for member in tried.values())):
            lora = _best(table, tried, seeds[0])
            beyond = _beyond(configurations(table, name, _full(confirm)), list(tried), lora)
            chosen = [lora.with_seed(seed) for seed in seeds if not _saw(tried[lora], seed)] if lora else []
            unseen = [beyond.with_seed(seeds[0])] if beyond else chosen
        found += unseen
    return found


def compared(
    table: StudyTable, confirmed: Confirmation, replicates: StudyTable, own: StudyTable
) -> tuple[Compared, ...]:
    """What is known of the baselines.

    Args:
        table: the search.
        confirmed: what the replicates of its front say.
        replicates: those.
        own: the replicates of the baselines.
    """
    known = [member for member in replicated(table, replicates) if member.results]
    found, confirm = [], own.search.confirm or Confirm()
    for name in confirm.baselines:
        tried = _tried(table, own, name, confirm)
        lora = _best(table, tried, seeds_of(table, 1)[0]) or next(iter(tried))
        member = tried[lora]
        ended = tuple(sorted({_words(trial) for trial in own.trials if trial.lora.with_seed(None) in tried} - {""}))
        running = sum(len(one.running) for one in tried.values() if one)
        waiting = running + len(following(table, own, confirm.model_copy(update={"baselines": [name]})))
        if member is None or not member.results:
            found.append(Compared(name, lora, None, ended, waiting, own.hours_again))
            continue
        judged = Judged(table, [*known, member])
        more = {
            entry.trial.number: {
                objective: fit.difference(entry.trial.number, NOWHERE) for objective, fit in judged.fits.items()
            }
            for entry in confirmed.kept
        }
        entry = judged.confirmed(member, math.nan)
        found.append(Compared(name, lora, entry, ended, waiting, own.hours_again, more))
    return tuple(found)


def _full(confirm: Confirm) -> FullTuning:
    """As it was set when the comparison began; where full fine-tuning is none of it, anything does."""
    return confirm.full_tuning or FullTuning(learning_rate=1e-5, quantization="bf16")


def _tried(
    table: StudyTable, own: StudyTable | None, name: Baseline, confirm: Confirm
) -> dict[LoraConfiguration, Replicated | None]:
    """What is tried of a baseline, with its replicates; None before the first."""
    found: dict[LoraConfiguration, Replicated | None] = {}
    for place, lora in enumerate(possible := configurations(table, name, _full(confirm))):
        trials = [trial for trial in (own.trials if own else ()) if trial.lora.with_seed(None) == lora]
        there = replace(trials[0], number=NOWHERE, lora=lora) if trials else None
        if there or len(possible) == 1 or STEPS[place] in FIRST_STEPS:
            found[lora] = of_trial(there, "compared", trials, table) if there else None
    return found


def _beyond(
    possible: Sequence[LoraConfiguration], tried: Sequence[LoraConfiguration], best: LoraConfiguration | None
) -> LoraConfiguration | None:
    """The next learning rate, where the best so far is the lowest or the highest of several."""
    if best is None or len(tried) == 1 or best not in (tried[0], tried[-1]):
        return None
    place = possible.index(best) + (1 if best == tried[-1] else -1)
    return possible[place] if 0 <= place < len(possible) else None


def _best(
    table: StudyTable, tried: Mapping[LoraConfiguration, Replicated | None], seed: int
) -> LoraConfiguration | None:
    """The one that did best with the first seed, on the search's own rows; None where none came to its end."""
    quality = axes_of(table.search.objective_list)[1]
    if len(tried) == 1:
        return next(iter(tried))
    seen = {}
    for lora, member in tried.items():
        trial = member.results.get(seed) if member else None
        if trial is not None:
            own_rows = trial.measurements.get(f"eval_{SEARCHED}_loss")
            elsewhere = minimized(trial.measurements, [quality])[0]
            seen[lora] = float(own_rows) if isinstance(own_rows, (int, float)) else elsewhere
    return min(seen, key=lambda lora: seen[lora], default=None)


def _saw(member: Replicated | None, seed: int) -> bool:
    return member is not None and seed in member.tried


def _words(trial: TrialRecord) -> str:
    """How a replicate ended that did not come to its end."""
    return "" if trial.outcome is None or trial.state == "COMPLETE" else trial.outcome.value
