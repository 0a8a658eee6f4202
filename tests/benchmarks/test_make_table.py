"""A table from finished searches: what is taken from which report, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from make_table import make_table, one_of_each_work
from trial_table import grid

from lorafront.search import StudyTable, parse_search
from lorafront.search.study_table import TrialRecord
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

SEARCH = parse_search(
    {
        "name": "small",
        "model": "any",
        "data": {"path": "any"},
        "space": {
            "rank": [4, 8],
            "alpha": {"ratio": [1, 2]},
            "modules": "attention",
            "quantization": "bf16",
            "dropout": 0.0,
            "bias": "none",
            "learning_rate": 1e-3,
        },
    }
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def report(lora: LoraConfiguration, rows: int, slowness: float, **changes: Any) -> Report:
    measured = {
        "eval_loss": 5.0 - rows / 100 - lora.rank / 1000,
        "peak_vram_gb": lora.rank / 10,
        "trainable_params": lora.rank * 100,
        "adapter_mb": lora.rank / 4,
        "setup_seconds": slowness,
        "train_seconds": rows / 10 * slowness,
        "eval_seconds": 0.5 * slowness,
    }
    return Report(rows, {**measured, **changes})


def trial(number: int, lora: LoraConfiguration, slowness: float = 1.0) -> TrialRecord:
    rungs = tuple(report(lora, rows, slowness) for rows in (10, 20))
    final = replace(rungs[-1], outcome=Outcome.COMPLETE)
    return TrialRecord(number, "COMPLETE", lora, 1, rungs, final, NOW, NOW)


def study(seed: int, trials: list[TrialRecord]) -> StudyTable:
    return StudyTable(SEARCH.model_copy(update={"seed": seed}), tuple(trials), {}, ())


def test_each_seed_of_each_configuration_is_a_row_of_losses() -> None:
    """Losses stand by configuration, seed and rung, whatever order the trials had."""
    loras = grid(SEARCH)
    there = [trial(number, lora) for number, lora in enumerate(loras)]
    back = [trial(number, lora) for number, lora in enumerate(reversed(loras))]
    table = make_table(SEARCH, [study(0, there), study(5, back)], {})
    assert (table.rungs, table.seeds, len(table)) == ((10, 20), (0, 5), 4)
    assert [lora.alpha for lora in table.configurations] == [4, 8, 8, 16]
    expected = [[5.0 - rows / 100 - lora.rank / 1000 for rows in (10, 20)] for lora in loras]
    np.testing.assert_allclose(table.eval_loss, np.stack([expected, expected], axis=1))


def test_times_are_the_least_of_the_same_work() -> None:
    """A slow moment of one trial does not make its configuration expensive; training is counted from rung to rung."""
    loras = grid(SEARCH)
    slow = [trial(number, lora, slowness=9.0 if number == 0 else 1.0) for number, lora in enumerate(loras)]
    quick = [trial(number, lora) for number, lora in enumerate(loras)]
    table = make_table(SEARCH, [study(0, slow), study(1, quick)], {})
    np.testing.assert_allclose(table.train_seconds, np.ones((4, 2)))
    np.testing.assert_allclose(table.full_seconds, np.full(4, 1.0 + 2.0 + 1.0))


def test_times_may_come_from_a_quiet_hour() -> None:
    """Where each work was timed once more, the times are from there, whatever the seeds say."""
    loras = grid(SEARCH)
    busy = [trial(number, lora, slowness=3.0) for number, lora in enumerate(loras)]
    timing = one_of_each_work(SEARCH)
    assert timing.budget.trials == 2
    quiet = [trial(number, lora, slowness=0.5) for number, lora in enumerate(grid(timing))]
    table = make_table(SEARCH, [study(0, busy)], {}, study(0, quiet))
    np.testing.assert_allclose(table.full_seconds, np.full(4, 0.5 * (1.0 + 2.0 + 1.0)))


def test_a_training_that_diverged_has_no_loss_from_there_on() -> None:
    """The rungs before it keep theirs."""
    loras = grid(SEARCH)
    trials = [trial(number, lora) for number, lora in enumerate(loras)]
    first = trials[0].rungs[:1]
    trials[0] = replace(trials[0], state="PRUNED", rungs=first, result=Report(20, {}, Outcome.DIVERGED))
    table = make_table(SEARCH, [study(0, trials)], {})
    assert math.isfinite(table.eval_loss[0, 0, 0])
    assert math.isnan(table.eval_loss[0, 0, 1])
    assert np.isfinite(table.eval_loss[1:]).all()


def test_an_unfinished_search_is_refused() -> None:
    """The refusal names a configuration that is missing, or says how it ended."""
    loras = grid(SEARCH)
    trials = [trial(number, lora) for number, lora in enumerate(loras)]
    with pytest.raises(ValueError, match=r"r8 a16 attention bf16 .* is missing"):
        make_table(SEARCH, [study(0, trials[:-1])], {})
    failed = replace(trials[-1], state="FAIL", result=Report(0, {}, Outcome.HOST_OOM))
    with pytest.raises(ValueError, match="ran out of the machine's memory"):
        make_table(SEARCH, [study(0, [*trials[:-1], failed])], {})


def test_a_range_makes_no_table() -> None:
    """A grid needs choices."""
    raw = SEARCH.model_dump(mode="json")
    raw["space"]["learning_rate"] = {"low": 1e-4, "high": 1e-3}
    with pytest.raises(ValueError, match="learning_rate is a range"):
        grid(parse_search(raw))
