"""A worker without Ray around it."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import MakeTrial

from lorafront.search.ray_trainable import JOIN, MEASURED, REPORTS, TrialTrainable
from lorafront.trainables.config import TrialConfig
from lorafront.trainables.outcome import Outcome


@pytest.fixture
def worker() -> Iterator[TrialTrainable]:
    found = TrialTrainable({JOIN: []})
    yield found
    found.cleanup()


def sent(number: int, config: TrialConfig, folder: Path, engine: str) -> dict[str, Any]:
    """What a driver says of a trial."""
    return {
        "number": number,
        "folder": str(folder / str(number)),
        "orders": str(folder / "orders"),
        "config": config.model_dump(mode="json"),
        "engine": engine,
        "known": {},
    }


def test_a_worker_trains_by_stock_peft_what_is_no_part_of_a_pack(
    worker: TrialTrainable, make_trial: MakeTrial, tmp_path: Path
) -> None:
    """One trial after the other, each a pack of its own, over a base that stays."""
    for number in (0, 1):
        worker.change(join=[sent(number, make_trial(seed=number), tmp_path, "process")])
        said = [json.loads(worker.step()[REPORTS])[str(number)] for _ in (16, 32)]
        assert [report["rows"] for report in said] == [16, 32]
        assert said[-1]["outcome"] == Outcome.COMPLETE.stored
    assert len(worker._bases._bases) == 1


def test_trials_that_are_let_go_make_room_before_others_join(
    worker: TrialTrainable, make_trial: MakeTrial, tmp_path: Path
) -> None:
    """What was said between two steps counts all at once with the next one."""
    worker.change(join=[sent(number, make_trial(), tmp_path, "toy-packed") for number in (0, 1)])
    assert set(json.loads(worker.step()[REPORTS])) == {"0", "1"}
    worker.change(leave=[0])
    worker.change(join=[sent(2, make_trial(), tmp_path, "toy-packed")])
    said = [json.loads(worker.step()[REPORTS]) for _ in range(2)]
    assert {number: report["rows"] for one in said for number, report in one.items()} in (
        {"1": 32, "2": 16}, {"2": 32, "1": 32},
    )  # fmt: skip


def test_a_worker_measures_each_alone_and_says_nothing_of_what_it_cannot(
    worker: TrialTrainable, make_trial: MakeTrial, tmp_path: Path
) -> None:
    """One configuration a step, in whatever order; one without its tokens costs nobody anything."""
    good, bad = make_trial(), make_trial().model_copy(update={"tokens": tmp_path / "none"})
    worker.change(measure={7: good.model_dump(mode="json"), 9: bad.model_dump(mode="json")})
    found: dict[str, Any] = {}
    for _ in range(2):
        found |= json.loads(worker.step()[MEASURED])
    assert found["7"]["peak_vram_gb"] > 0
    assert found["9"] == {}


def test_a_job_that_cannot_even_begin_is_answered(worker: TrialTrainable) -> None:
    """The driver hears that nothing was measured, and the worker lives."""
    worker.change(measure={3: {"no": "configuration"}})
    assert json.loads(worker.step()[MEASURED]) == {"3": {}}
