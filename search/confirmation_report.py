"""What `confirm` says: a table, sentences, JSON. Pure apart from rich's drawing."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from lorafront.search.comparison import Compared
from lorafront.search.confirmation import Confirmation
from lorafront.search.front import values
from lorafront.search.judged import Confirmed
from lorafront.search.replicates import RATIOS
from lorafront.search.study_table import VRAM
from lorafront.search.tables import COMPACT, heading, number
from lorafront.spaces.objectives import Objective

COMPARED = {
    "default": "the recommended default",
    "full": "full fine-tuning",
}
LONGER = " and twice the rows"
CERTAIN = 0.995  # probabilities are told in per cent


def confirmation_table(found: Confirmation) -> Table:
    """For a terminal of 80 columns: what to choose from, then what that makes needless, then what is beaten."""
    objectives = found.table.search.objective_list
    title = f"Front of {found.table.search.name}, trained again with other seeds{LONGER if found.longer else ''}"
    shown = Table(title=title, title_justify="left", caption_justify="left", **COMPACT)
    shown.add_column("trial", justify="right", no_wrap=True)
    shown.add_column("configuration", overflow="fold", min_width=14)
    shown.add_column("seeds", justify="right", no_wrap=True)
    for objective in objectives:
        shown.add_column(heading(objective, len(objectives)), justify="right", style="bold", no_wrap=True)
    shown.add_column("chance", justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for entry in found.entries:
        cells = [with_interval(entry, objective) for objective in objectives]
        seeds = f"{entry.seeds}" + (f" of {entry.seeds + entry.lost}" if entry.lost else "")
        said = verdict(found, entry)
        shown.add_row(str(entry.trial.number), entry.trial.lora.label, seeds, *cells, chance(entry.probability), said)
    for one in found.compared:
        cells = [with_interval(one.entry, objective) if one.entry else "" for objective in objectives]
        shown.add_row(one.name, one.lora.label, str(one.entry.seeds if one.entry else 0), *cells, "", "")
    shown.caption = (
        "± is the 95 % interval of the mean over seeds, on rows that the search never\n"
        "saw; chance is that of being on the front"
    )
    return shown


def lines(found: Confirmation) -> list[str]:
    """How much seeds matter, and how far the search's own estimates could be trusted."""
    quality = found.quality
    told = []
    if found.spread is not None:
        told.append(
            f"another seed alone moves {quality.label} by {_amount(found.spread, quality)} (standard deviation)"
        )
    gap, worse = _amount(abs(found.bias.total), quality), "worse" if found.bias.total >= 0 else "better"
    line = f"{quality.label} is {gap} {worse} here than the search had it for its front"
    if found.longer:
        line += ", after twice the rows"
    elif found.bias.rows is not None and found.bias.luck is not None:
        line += f" ({_signed(found.bias.luck)} by luck of the seed, {_signed(found.bias.rows)} by other rows)"
    told += [line, *(_holds(found) if found.longer else [])]
    second = [o.label for o in found.table.search.objective_list if o.name.startswith("eval_")]
    if second:
        told.append(f"{', '.join(second)}: on the same second rows as in the search")
    told += [_to_baseline(found, entry) for entry in found.kept if entry.to_baseline is not None]
    told += [line for one in found.compared for line in _against(found, one)]
    if found.waiting:
        told.append(
            f"{found.waiting} replicate{'s are' if found.waiting > 1 else ' is'} still to come: "
            f"lorafront confirm {found.table.search.name}{' --longer' if found.longer else ''}{found.hours_again}"
        )
    return told


def _holds(found: Confirmation) -> list[str]:
    """Who of the front stays on it, who leaves it, and who comes."""
    stay = [entry for entry in (*found.kept, *found.needless) if entry.role == "front"]
    leave = [entry for entry in found.beaten if entry.role == "front"]
    come = [entry for entry in found.kept if entry.role != "front"]
    named = {"still on the front": stay, "no longer on it": leave, "new on it": come}
    return [
        f"{words}: trial{'s' if len(entries) > 1 else ''} {', '.join(str(entry.trial.number) for entry in entries)}"
        for words, entries in named.items()
        if entries
    ]


def _to_baseline(found: Confirmation, entry: Confirmed) -> str:
    """What it has more than the user's recipe at the same seeds: of the quality, and of the peak where it is known."""
    own = next(one for one in found.entries if one.role == "baseline")
    said = _differs(found.quality, entry.to_baseline or (0.0, 0.0), entry, own)
    return f"trial {entry.trial.number} against the baseline, trial {own.trial.number}: {said}"


def _differs(quality: Objective, difference: tuple[float, float], entry: Confirmed, other: Confirmed) -> str:
    """What one has more than another: of the quality at the same seeds, and of the peak where it is known."""
    more, half = difference
    if not math.isfinite(half):
        said = "unsure"
    elif quality.name in RATIOS:
        low, middle, high = (f"{_two(100 * math.expm1(end)):+g}" for end in (more - half, more, more + half))
        said = f"{middle} % ({low} to {high})"
    else:
        said = f"{_two(more):+g} ± {_two(half):g}"
    memory = f", peak VRAM {entry.values[VRAM] - other.values[VRAM]:+.3g} GiB" if VRAM in entry.values else ""
    return f"{quality.label} {said}{memory}"


def _against(found: Confirmation, one: Compared) -> list[str]:
    """What the front has more than a baseline, or why nobody knows."""
    name = COMPARED[one.name]
    more = f"{one.waiting} training{'s are' if one.waiting > 1 else ' is'} still to come"
    go_on = f"lorafront compare {found.table.search.name} --baseline {one.name}{one.hours_again}"
    waiting = [f"{name}: {more}: {go_on}"] if one.waiting else []
    if one.entry is None:
        return [f"{name}: {'; '.join(one.ended) or 'nothing has come to its end yet'}", *waiting]
    lost = [f"{name}: some of its trials ended otherwise: {'; '.join(one.ended)}"] if one.ended else []
    return [*waiting, *lost] + [
        f"trial {entry.trial.number} against {name}: "
        + _differs(found.quality, one.differences[entry.trial.number][found.quality.name], entry, one.entry)
        for entry in found.kept
    ]


def how_sure(found: Confirmation, number: int) -> list[str]:
    """What replicates say of one trial of the search; nothing where it has none."""
    entry, quality = found.of(number), found.quality
    if entry is None:
        return []
    told = f"over {entry.seeds} seeds: {quality.label} {with_interval(entry, quality)}"
    told += f" (95 %), on rows that the search never saw; on the front with a chance of {chance(entry.probability)}"
    lost = [f"{entry.lost} of {entry.seeds + entry.lost} seeds diverged or failed"] if entry.lost else []
    numbers = ", ".join(map(str, entry.covers))
    same = [f"as good within noise or a trifle: trial{'s' if len(entry.covers) > 1 else ''} {numbers}"]
    return [told, *lost, *(same if entry.covers else [])]


def verdict(found: Confirmation, entry: Confirmed) -> str:
    """What became of a configuration, in words."""
    if entry in found.needless:
        by = next(one.trial.number for one in found.kept if entry.trial.number in one.covers)
        return f"as good: {by}"
    if entry in found.beaten:
        return "baseline" if entry.role == "baseline" else "beaten"
    return {"front": "", "near the front": "new", "baseline": "baseline", "compared": ""}[entry.role]


def with_interval(entry: Confirmed, objective: Objective) -> str:
    """`50.66 ± 1.3`, or the value alone where every replicate measured the same."""
    value, (low, high) = entry.values[objective.name], entry.intervals[objective.name]
    half = (high - low) / 2
    told = number(value, objective)
    if not math.isfinite(half) or half <= 1e-6 * abs(value):
        return told if math.isfinite(half) or not objective.quality else f"{told} ± ?"
    return f"{told} ± {_two(half):g}"


def chance(probability: float) -> str:
    """In per cent; none that was estimated is certain."""
    if probability > CERTAIN:
        return "> 99 %"
    return "< 1 %" if probability < 1 - CERTAIN else f"{100 * probability:.0f} %"


def as_json(found: Confirmation) -> dict[str, Any]:
    """As `confirm --json` prints it."""
    objectives = found.table.search.objective_list

    def one(entry: Confirmed) -> dict[str, Any]:
        estimated = dict(zip((o.name for o in objectives), values(entry.trial, objectives), strict=True))
        return {
            "trial": entry.trial.number,
            "params": entry.trial.lora.model_dump(mode="json"),
            "was": entry.role,
            "seeds": entry.seeds,
            "lost": entry.lost,
            "values": dict(entry.values),
            "intervals": _ends(entry),
            "estimated": estimated,
            "probability": entry.probability,
            "covers": list(entry.covers),
            **(
                {"to_baseline": [e if math.isfinite(e) else None for e in entry.to_baseline]}
                if entry.to_baseline
                else {}
            ),
        }

    return {
        "kept": [one(entry) for entry in found.kept],
        "needless": [one(entry) for entry in found.needless],
        "beaten": [one(entry) for entry in found.beaten],
        "quality": found.quality.name,
        "spread": found.spread,
        "bias": {"total": found.bias.total, "rows": found.bias.rows, "luck": found.bias.luck},
        "waiting": found.waiting,
        "longer": found.longer,
        "compared": [_compared(one) for one in found.compared],
    }


def _compared(one: Compared) -> dict[str, Any]:
    """A baseline; differences are those of `kept` to it, on the scale of the objective, with half the interval."""
    entry = one.entry
    return {
        "baseline": one.name,
        "params": one.lora.model_dump(mode="json"),
        "ended": list(one.ended),
        "waiting": one.waiting,
        "seeds": entry.seeds if entry else 0,
        "values": dict(entry.values) if entry else {},
        "intervals": _ends(entry) if entry else {},
        "differences": {
            str(number): {name: [v if math.isfinite(v) else None for v in pair] for name, pair in by_objective.items()}
            for number, by_objective in one.differences.items()
        },
    }


def _ends(entry: Confirmed) -> dict[str, list[float | None]]:
    return {name: [end if math.isfinite(end) else None for end in ends] for name, ends in entry.intervals.items()}


def _amount(size: float, objective: Objective) -> str:
    """On the scale of the objective: of what is compared by ratios in per cent."""
    return f"{100 * math.expm1(size):.2g} %" if objective.name in RATIOS else f"{size:.2g} {objective.unit}".rstrip()


def _two(value: float) -> float:
    """Of two digits."""
    return float(f"{value:.2g}")


def _signed(size: float) -> str:
    return f"{100 * math.expm1(size):+.2g} %"
