"""A trial as Ray Tune runs it: an actor that is reused, and keeps the frozen base between trials of one base key.

Thin: all work is `lorafront.trainables`. A trial's own failure is a report, so the actor lives on.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from ray import tune

from lorafront.trainables.trial import Trial, TrialFolder

NUMBER, FOLDER, CONFIG, ENGINE = "number", "folder", "config", "engine"
REPORT = "report"


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray is untyped
    """One step is one rung."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the first trial of this actor."""
        self._bases: Any = None
        self._open(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in the same process."""
        self._trial.close()
        self._open(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung; `done` where the trial has ended."""
        report = self._trial.next_rung()
        if report.outcome is not None and report.outcome.is_failure:
            if self._bases is not None:
                self._bases.drop()  # whatever broke may have left the base in pieces
            _check_device()
        # As text: Ray Tune flattens nested results on their way to the searcher.
        return {REPORT: json.dumps(report.as_json()), "done": report.outcome is not None}

    def cleanup(self) -> None:
        """Give the base back."""
        self._trial.close()

    def _open(self, config: dict[str, Any]) -> None:
        make = _toy(config) if config[ENGINE] == "toy" else self._peft(config)
        rungs = tuple(config[CONFIG]["rungs"])
        self._trial = Trial(make, rungs, TrialFolder(Path(config[FOLDER])))

    def _peft(self, config: dict[str, Any]) -> Any:
        """The heavy imports wait for the first step.

        While an actor starts, Ray Tune gives its trial to another one that has just become free, and ends it. If that
        takes longer than a trial does, it happens again with the next actor and the next, and only one ever works.
        """

        def make() -> Any:
            from lorafront.trainables.config import TrialConfig
            from lorafront.trainables.frozen_base import BaseCache
            from lorafront.trainables.peft_session import open_session

            if self._bases is None:
                self._bases = BaseCache()
                gc.freeze()  # once: what the imports made lives as long as the process, no collection has to look at it
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

    return lambda: ToySession(LoraConfiguration.model_validate(config[CONFIG]["lora"]), config[CONFIG]["seed"])
