"""How findings are said: differences as people read them. Pure.

Differences come as losses are compared (search/learning_curve.py): of perplexity in its logarithm, negative is better.
"""

from __future__ import annotations

import math
from typing import Any

from lorafront.search.contrasts import Interval
from lorafront.spaces.objectives import OBJECTIVES, Objective

WORTH_NAMING = 0.01  # in the logarithm of perplexity, in accuracy, F1 or nats
POINT = 9.95  # from here on two digits stand before the point
MILLION, THOUSAND = 1e6, 1e3
WORDS = {
    "alpha_ratio": "alpha / rank", "batch_size": "batch size", "gradient_accumulation": "accumulation",
    "weight_decay": "weight decay", "learning_rate": "learning rate",
}  # fmt: skip
TITLES = {"rank": "Rank", "modules": "Modules", "quantization": "Quantization"}


def pair(parameter: str, before: Any, after: Any) -> str:
    """Such as `rank 8 to 16` or `nf4 instead of bf16`."""
    first, second = (f"{value:g}" if isinstance(value, float) else str(value) for value in (before, after))
    if parameter in TITLES and parameter != "rank":
        return f"{second} instead of {first}"
    return f"{WORDS.get(parameter, parameter)} {first} to {second}"


def change(quality: Objective, found: Interval) -> str:
    """Such as `perplexity 3.1 % lower (1.5 to 4.6 %)`, of what is certain or negligible."""
    if max(-found.low, found.high) < WORTH_NAMING:
        worst = max(found.low, found.high, key=abs)
        return f"no difference in {quality.label} worth naming (at most {size(quality, worst)})"
    better, worse = ("higher", "lower") if quality.direction == "maximize" else ("lower", "higher")
    low, high = (_short(size) for size in sorted(abs(_amount(quality, end)) for end in (found.low, found.high)))
    word = better if found.middle < 0 else worse
    return f"{quality.label} {size(quality, found.middle)} {word} ({low} to {high}{_unit(quality)})"


def scale(quality: Objective) -> str:
    """What differences are in, for programs."""
    if quality is OBJECTIVES["perplexity"]:
        return "nats"
    return f"minus {quality.label}" if quality.direction == "maximize" else quality.unit


def _amount(quality: Objective, difference: float) -> float:
    """A difference as people say it: of perplexity in per cent, of a share in points."""
    if quality is OBJECTIVES["perplexity"]:
        return 100 * math.expm1(difference)
    return 100 * difference if quality.direction == "maximize" else difference


def _unit(quality: Objective) -> str:
    if quality is OBJECTIVES["perplexity"]:
        return " %"
    return " points" if quality.direction == "maximize" else f" {quality.unit}"


def size(quality: Objective, difference: float) -> str:
    """Without its sign."""
    return f"{_short(abs(_amount(quality, difference)))}{_unit(quality)}"


def _short(size: float) -> str:
    """Two digits, more where they stand before the point."""
    return f"{size:.2g}" if size < 1 else f"{size:.1f}" if size < POINT else f"{size:,.0f}"


def more(difference: float, what: str) -> str:
    """Such as `0.04 GiB more`."""
    amount = abs(difference)
    number = f"{float(f'{amount:.3g}'):,.0f}" if amount >= THOUSAND else f"{amount:.3g}"
    number = f"{amount / MILLION:.3g} M" if amount >= MILLION else number
    return f"{number} {what} {'more' if difference > 0 else 'less' if what == 'GiB' else 'fewer'}"
