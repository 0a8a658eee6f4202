"""How much of a space breaks a limit that is known before a trial runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import TINY_LLAMA

from lorafront.search.known_limits import MOST_LISTED, breaking
from lorafront.search.paths import RootPaths
from lorafront.search.preflight import check
from lorafront.search.prepared import Prepared
from lorafront.search.search_file import parse_search
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.lora import LoraConfiguration, LoraSpace
from lorafront.trainables.config import TrainingConfig

DEFAULTS = TrainingConfig(rows=8).defaults()


def over(rank: int) -> Callable[[LoraConfiguration], str]:
    return lambda lora: "too large" if lora.rank > rank else ""


def test_every_discrete_configuration_counts_once() -> None:
    """Ranges with steps are listed, continuous ones stand for one, and choices that train the same are one."""
    space = LoraSpace.model_validate({"rank": {"low": 4, "high": 16, "step": 4}, "modules": "attention"})
    found = breaking(space, DEFAULTS, lambda lora: lora.model_copy(update={"bias": "none"}), over(8))
    assert (found.broken, found.total, found.example, found.all_listed) == (2 * 2 * 3, 4 * 2 * 3, "too large", True)
    assert str(found) == "not proposed: 12 of 24 discrete configurations, over a limit or too large"


def test_a_large_space_is_drawn_from() -> None:
    """Where a space cannot be listed the share is an estimate, and is said as one."""
    space = LoraSpace.model_validate({"rank": {"low": 1, "high": 1000}})
    assert space.size()[0] > MOST_LISTED
    found = breaking(space, DEFAULTS, lambda lora: lora, over(500))
    assert not found.all_listed
    assert found.broken / found.total == pytest.approx(0.5, abs=0.02)
    assert str(found).startswith("not proposed: about ")


@pytest.fixture
def checked(text_file: Path, tmp_path: Path) -> Callable[..., Prepared]:
    def run(**sections: Any) -> Prepared:
        data = {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8}
        base = {"name": "x", "model": str(TINY_LLAMA), "data": data, "training": {"rows": 16, "batch_size": 4}}
        return check(parse_search({**base, **sections}), RootPaths(tmp_path / "runs"), tmp_path)

    return run


def test_check_says_what_a_limit_leaves(checked: Callable[..., Prepared]) -> None:
    """tiny-llama's attention takes 16,384 bytes of adapter per rank, so half a megabyte leaves ranks up to 30."""
    space = {
        "rank": [4, 16, 30, 31],
        "modules": "attention",
        "quantization": "nf4",
        "alpha": {"ratio": 1},
        "bias": "none",
    }
    prepared = checked(space=space, constraints={"adapter_mb": "<= 0.5", "perplexity": "<= 100"})
    assert "not proposed: 1 of 4 discrete configurations, over a limit or too large" in prepared.notes
    assert [prepared.breaks(prepared.configuration({**point.params, "rank": 31})) for point in prepared.starts.points]
    assert all(not prepared.breaks(prepared.configuration(point.params)) for point in prepared.starts.points)


def test_a_space_that_breaks_a_limit_everywhere_is_refused(checked: Callable[..., Prepared]) -> None:
    """At the constraint, with an example of what it would be."""
    with pytest.raises(InvalidInput) as caught:
        checked(constraints={"trainable_params": "<= 1000"}, space={"bias": "none"})
    (problem,) = caught.value.problems
    assert problem.path == ("constraints", "trainable_params")
    assert problem.message.startswith("no configuration of the space keeps the limits")


def test_a_limit_that_only_a_trial_can_tell_is_left_to_it(checked: Callable[..., Prepared]) -> None:
    """Perplexity is not known before a trial runs, so nothing is refused for it."""
    prepared = checked(constraints={"perplexity": "<= 0.1"}, space={"bias": "none"})
    assert not any("break" in note for note in prepared.notes)
