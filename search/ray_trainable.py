"""A worker as Ray Tune runs it: an actor that trains one configuration after the other and keeps the frozen bases.

Thin: all work is `lorafront.trainables`. A trial's own failure is a report, so the actor lives on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ray import tune

from lorafront.search.environment import heavy_imports
from lorafront.trainables.orders import OrderFolder, TrialOrders
from lorafront.trainables.trial import Trial, TrialFolder

NUMBER, FOLDER, ORDERS, CONFIG, ENGINE = "number", "folder", "orders", "config", "engine"
KNOWN, RESOURCES = "known", "resources"
REPORT = "report"
TOYS = {"toy": 0.0, "slow-toy": 0.05}  # seconds of an optimizer step


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray is untyped
    """One step is one rung."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start an actor with its first configuration."""
        self._bases: Any = None
        self._trial: Trial | None = None
        self._next = config

    def begin(self, config: dict[str, Any]) -> None:
        """Run another configuration from the next step on, in the same process."""
        self._next = config

    def step(self) -> dict[str, Any]:
        """Train to the next rung. The report says whether the trial has ended; the actor lives on for the next one."""
        if self._trial is None or self._next:
            config, self._next = self._next, {}
            self.cleanup()
            self._trial = self._open(config)
        report = self._trial.next_rung()
        if report.outcome is not None and report.outcome.is_failure:
            if self._bases is not None:
                self._bases.drop()  # whatever broke may have left the base in pieces
            _check_device()
        # As text: Ray Tune flattens nested results on their way to the searcher.
        return {REPORT: json.dumps(report.as_json())}

    def cleanup(self) -> None:
        """Give the base back."""
        if self._trial is not None:
            self._trial.close()

    def _open(self, config: dict[str, Any]) -> Trial:
        return Trial(
            _toy(config) if config[ENGINE] in TOYS else self._peft(config),
            tuple(config[CONFIG]["rungs"]),
            TrialFolder(Path(config[FOLDER])),
            TrialOrders(OrderFolder(Path(config[ORDERS])), config[NUMBER]),
            checkpoint_seconds=60 * config[CONFIG]["training"]["checkpoint_minutes"],
            known=config[KNOWN],
        )

    def _peft(self, config: dict[str, Any]) -> Any:
        """The heavy imports wait for the first step: the toy engine does without."""

        def make() -> Any:
            with heavy_imports("peft"):
                from lorafront.trainables.config import TrialConfig
                from lorafront.trainables.frozen_base import BaseCache
                from lorafront.trainables.peft_session import open_session

            self._bases = self._bases or BaseCache()
            return open_session(TrialConfig.model_validate(config[CONFIG]), self._bases)

        return make


def _check_device() -> None:
    """Raise where CUDA is broken for this process, so that Ray ends it; the trial's result file is written already."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _toy(config: dict[str, Any]) -> Any:
    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.toy import ToySession

    lora = LoraConfiguration.model_validate(config[CONFIG]["lora"])
    return lambda: ToySession(lora, config[CONFIG]["seed"], step_seconds=TOYS[config[ENGINE]])
