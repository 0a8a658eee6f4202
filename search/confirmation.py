"""A front trained again with other seeds: what to train next, and what the replicates say of it. Pure.

The replicates are trials of a search of their own, `NAME-confirm`: each is a configuration of the first search with a
seed, trained alone by stock PEFT, so that its peak memory is measured, and evaluated on rows that the first search
never saw. Two seeds for every member of the front come first; then for those near it that could overtake one; further
seeds go where it is unsure who is on the front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorafront.search.comparison import Compared

from lorafront.search.baseline import baseline_of
from lorafront.search.front import axes_of, front_of
from lorafront.search.judged import LEAST, Bias, Confirmed, Judged, Replicated, Role, of_trial
from lorafront.search.search_file import MOST_SEEDS
from lorafront.search.study_table import VRAM, StudyTable, TrialRecord
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.objectives import Objective

FIRST = 2  # replicates of each: of one nobody can tell a variance
UNSURE = (LEAST, 1 - LEAST)  # probabilities of being on the front between which a further replicate is worth its cost


@dataclass(frozen=True)
class Confirmation:
    """All of it.

    Attributes:
        table: the search.
        quality: the objective by which the front is ordered, and of which the bias is told.
        kept: configurations that are worth choosing from, the best first; each may make others needless.
        needless: those, the best first.
        beaten: configurations that are not on the front any more.
        spread: standard deviation over seeds of the quality, on its scale; None where nothing has two replicates.
        bias: of the search's estimates.
        waiting: replicates that are still to be trained.
        hours_again: what the command that trains them needs (`StudyTable.hours_again`).
        compared: what else was trained on the same terms (search/comparison.py).
        longer: the replicates were trained longer than the trials of the search.
    """

    table: StudyTable
    quality: Objective
    kept: tuple[Confirmed, ...]
    needless: tuple[Confirmed, ...]
    beaten: tuple[Confirmed, ...]
    spread: float | None
    bias: Bias
    waiting: int
    hours_again: str = ""
    compared: tuple[Compared, ...] = ()
    longer: bool = False

    @property
    def entries(self) -> tuple[Confirmed, ...]:
        """All of them."""
        return (*self.kept, *self.needless, *self.beaten)

    def of(self, number: int) -> Confirmed | None:
        """What is known of a trial of the search."""
        return next((entry for entry in self.entries if entry.trial.number == number), None)


def seeds_of(table: StudyTable, count: int) -> list[int]:
    """Seeds of replicates: those after the search's own."""
    first = table.search.seed + 1 if table.search.seed + MOST_SEEDS < 2**31 else 0
    return list(range(first, first + count))


def following(table: StudyTable, own: StudyTable | None, seeds: int) -> list[LoraConfiguration]:
    """What to train next; none where the front is known, or every seed was tried.

    Args:
        table: the search.
        own: the replicates so far.
        seeds: of a configuration at most.
    """
    members = replicated(table, own)
    chosen = seeds_of(table, seeds)
    missing = _missing(members, chosen[:FIRST])
    if missing or any(member.running for member in members):
        return missing
    known = [member for member in members if member.results]
    if not known:  # all of them diverged: there is nothing to compare with
        return []
    judged = Judged(table, known, longer=own is not None and _longer(table, own))
    near = _missing((Replicated(trial, "near the front") for trial in judged.rivals(members)), chosen[:FIRST])
    if near:
        return near
    low, high = UNSURE
    unsure = {n for n, share in judged.memberships().items() if low < share < high}
    further = (_missing([member], chosen)[:1] for member in members if member.trial.number in unsure)
    return [lora for found in further for lora in found]


def replicated(table: StudyTable, own: StudyTable | None) -> list[Replicated]:
    """Members of the front and whatever else has replicates, by number."""
    by_configuration = {trial.lora.fingerprint: trial for trial in table.complete}
    replicates: dict[int, list[TrialRecord]] = {}
    for trial in own.trials if own is not None else ():
        original = by_configuration.get(trial.lora.with_seed(None).fingerprint)
        if original is not None:
            replicates.setdefault(original.number, []).append(trial)
    roles: dict[int, Role] = dict.fromkeys(replicates, "near the front")
    roles |= {trial.number: "front" for trial in front_of(table)}
    own_recipe = baseline_of(table)
    if own_recipe is not None:
        roles[own_recipe.number] = "baseline"
    found = []
    for trial in table.complete:
        if trial.number not in roles:
            continue
        found.append(of_trial(trial, roles[trial.number], replicates.get(trial.number, ()), table))
    return found


def confirmation(table: StudyTable, own: StudyTable, seeds: int) -> Confirmation | None:
    """What the replicates say; None before any configuration has two.

    Args:
        table: the search.
        own: the replicates.
        seeds: of a configuration at most.
    """
    members = replicated(table, own)
    known = [member for member in members if member.results]
    if not known:
        return None
    judged = Judged(table, known)
    quality = axes_of(table.search.objective_list)[1]
    if judged.fits[quality.name].freedom == 0:
        return None
    shares = judged.memberships()
    entries = [judged.confirmed(member, shares[member.trial.number]) for member in known]
    sign = -1 if quality.direction == "maximize" else 1
    entries.sort(key=lambda entry: (sign * entry.values[quality.name], entry.trial.number))
    able = [entry for entry in entries if entry.probability > UNSURE[0]]
    kept, needless = _merged(able, judged.covers)
    noise = judged.fits[quality.name]
    running = sum(len(member.running) for member in members)
    return Confirmation(
        table, quality, kept, needless,
        beaten=tuple(entry for entry in entries if entry not in able),
        spread=noise.spread if noise.freedom else None,
        bias=judged.bias(quality),
        waiting=len(following(table, own, seeds)) + running,
        hours_again=own.hours_again,
        longer=_longer(table, own),
    )  # fmt: skip


def as_confirmed(found: Confirmation) -> StudyTable:
    """The search with nothing but what is worth choosing, and the means of the replicates in place of its estimates."""
    trials = []
    for entry in found.kept:
        last = entry.trial.result
        if last is not None:
            peak = {} if entry.peak is None else {VRAM: entry.peak, "peak_vram_source": "confirmed"}
            measured = {**entry.trial.measurements, **peak, **entry.values}
            trials.append(replace(entry.trial, result=replace(last, measurements=measured), standalone=None))
    return replace(found.table, trials=tuple(trials))


def _longer(table: StudyTable, own: StudyTable) -> bool:
    """Whether the replicates see more rows than the trials of the search."""
    here, there = (found.data.get("rungs") or [0] for found in (own, table))
    return int(here[-1]) > int(there[-1])


def _merged(
    entries: Sequence[Confirmed], covers: Callable[[int, int], bool]
) -> tuple[tuple[Confirmed, ...], tuple[Confirmed, ...]]:
    """(those that make all others needless, those others); the one that makes most of them needless comes first."""
    numbers = [entry.trial.number for entry in entries]
    left = list(entries)
    covered = {number: {other for other in numbers if other != number and covers(number, other)} for number in numbers}
    kept: dict[int, tuple[int, ...]] = {}
    while left:
        there = {entry.trial.number for entry in left}
        best = max(left, key=lambda entry: len(covered[entry.trial.number] & there))  # of equals the better one
        number = best.trial.number
        kept[number] = tuple(n for n in numbers if n in covered[number] & there)
        left = [entry for entry in left if entry.trial.number not in {number, *kept[number]}]
    chosen = tuple(replace(e, covers=kept[e.trial.number]) for e in entries if e.trial.number in kept)
    return chosen, tuple(entry for entry in entries if entry.trial.number not in kept)


def _missing(members: Iterable[Replicated], seeds: Sequence[int]) -> list[LoraConfiguration]:
    """Replicates with these seeds that nobody has tried."""
    return [m.trial.lora.with_seed(seed) for m in members for seed in seeds if seed not in m.tried]
