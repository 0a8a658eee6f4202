"""A worker as Ray Tune runs it: an actor that trains a pack of configurations and keeps the frozen bases.

Thin: all work is `lorafront.trainables`. A trial's own failure is a report, so the actor lives on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from lorafront.search.environment import heavy_imports
from lorafront.trainables import heartbeat
from lorafront.trainables.config import TrialConfig
from lorafront.trainables.engines import PROCESS
from lorafront.trainables.orders import OrderFolder, TrialOrders
from lorafront.trainables.pack import OneByOne, Pack
from lorafront.trainables.toy import ToyEngine
from lorafront.trainables.trial import Trial, TrialFolder

if TYPE_CHECKING:
    from lorafront.trainables.session import Session

NUMBER, FOLDER, ORDERS, CONFIG, ENGINE, KNOWN = "number", "folder", "orders", "config", "engine", "known"
RESOURCES = "resources"
JOIN, LEAVE, MEASURE = "join", "leave", "measure"  # what a worker is told
REPORTS, MEASURED = "reports", "measured"  # what it says
TOYS = {"toy": 0.0, "slow-toy": 0.05}  # seconds of an optimizer step
TOY_PACKS = {f"{name}-packed": seconds for name, seconds in TOYS.items()}


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray is untyped
    """One step ends when a trial of the pack has something to report."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start an actor with its first pack."""
        if ray.is_initialized():
            os.environ[heartbeat.NODE] = ray.get_runtime_context().get_node_id()
        self._bases: Any = None
        self._pack = Pack(self._drop_bases)
        self._join: list[dict[str, Any]] = []
        self._leave: list[int] = []
        self._measuring: Iterator[dict[int, Any]] = iter(())
        self.config: dict[str, Any] = {}  # else all of it would be in every result
        self.change(join=config[JOIN])

    def change(
        self,
        join: Sequence[dict[str, Any]] = (),
        leave: Sequence[int] = (),
        measure: Mapping[int, dict[str, Any]] | None = None,
    ) -> None:
        """What comes before the next step: nobody hears what goes wrong in here, so this only takes note.

        Args:
            join: trials.
            leave: numbers of trials that end here.
            measure: configurations whose peak memory is measured alone, by number, when no trial is left.
        """
        self._join += join
        self._leave += leave
        if measure:
            self._measuring = self._measured(measure)

    def step(self) -> dict[str, Any]:
        """Train until trials have something to report. The actor lives on for the next ones."""
        for number in self._leave:
            self._pack.leave(number)
        for one in self._join:
            self._pack.join(one[NUMBER], self._trial(one))
        self._join, self._leave = [], []
        if not len(self._pack) and (measured := next(self._measuring, None)) is not None:
            return {MEASURED: json.dumps(measured)}
        reports = self._pack.next_reports()
        if any(report.outcome is not None and report.outcome.is_failure for report in reports.values()):
            _check_device()
        # As text: Ray Tune flattens nested results on their way to the searcher.
        return {REPORTS: json.dumps({number: report.as_json() for number, report in reports.items()})}

    def cleanup(self) -> None:
        """Give the bases back."""
        self._pack.close()

    def _trial(self, one: dict[str, Any]) -> Trial:
        return Trial(
            partial(self._open, one),
            tuple(one[CONFIG]["rungs"]),
            TrialFolder(Path(one[FOLDER])),
            TrialOrders(OrderFolder(Path(one[ORDERS])), one[NUMBER]),
            checkpoint_seconds=60 * one[CONFIG]["training"]["checkpoint_minutes"],
            known=one[KNOWN],
        )

    def _open(self, one: dict[str, Any]) -> Session:
        """A session on the engine that its trial was sent with."""
        config, name = TrialConfig.model_validate(one[CONFIG]), one[ENGINE]
        key: Hashable = name
        if name in TOYS or name in TOY_PACKS:
            key = (name, config.lora.quantization)
            make: Any = partial(ToyEngine, {**TOYS, **TOY_PACKS}[name])
        else:
            key, make = self._torch_engine(name, config)
        return self._pack.open(key, make, config)

    def _torch_engine(self, name: str, config: TrialConfig) -> tuple[Hashable, Any]:
        """The heavy imports wait for the first session: the toy does without."""
        with heavy_imports("peft"):
            from lorafront.trainables.frozen_base import BaseCache
            from lorafront.trainables.peft_session import open_session

        self._bases = self._bases or BaseCache()
        if name == PROCESS:
            return PROCESS, partial(OneByOne, partial(open_session, bases=self._bases))
        from lorafront.trainables.engines import pack_key
        from lorafront.trainables.packed_engine import PackedEngine

        return pack_key(config), partial(PackedEngine, config, self._bases)

    def _drop_bases(self) -> None:
        """Whatever broke may have left a base in pieces."""
        if self._bases is not None:
            self._bases.drop()

    def _measured(self, job: Mapping[int, dict[str, Any]]) -> Iterator[dict[int, Any]]:
        """Peak memory of one after the other; nothing of what cannot be measured."""
        left = list(job)
        try:
            with heavy_imports("peft"):
                from lorafront.trainables.frozen_base import BaseCache
                from lorafront.trainables.standalone import measure_alone

            self._pack.close()
            self._bases = self._bases or BaseCache()
            numbers, configs = list(job), [TrialConfig.model_validate(config) for config in job.values()]
            for index, measured in measure_alone(configs, self._bases):
                left.remove(numbers[index])
                yield {numbers[index]: measured}
        except Exception:  # noqa: BLE001  # it costs the search nothing but these measurements
            self._drop_bases()
        yield {number: {} for number in left}


def _check_device() -> None:
    """Raise where CUDA is broken for this process, so that Ray ends it; the trial's result file is written already."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
