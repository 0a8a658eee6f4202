"""Ray Tune's hook into the driver's loop: thin, all decisions are those of `Control`.

It is a stopper and no callback: where there are callbacks, Ray Tune imports MLflow before the first trial.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from lorafront.search.control import Control
from lorafront.search.optuna_searcher import OptunaSearcher


class RayControl(tune.Stopper):  # type: ignore[misc]  # Ray is untyped
    """Lets the control look around in each turn of the loop, and ends the loop."""

    def __init__(self, control: Control, searcher: OptunaSearcher) -> None:
        """Args: control: looks. searcher: knows what runs."""
        self._control = control
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles stoppers into files that we never read."""
        return {}

    def __call__(self, *_: Any) -> bool:
        """No trial is stopped here: they leave by themselves."""
        return False

    def stop_all(self) -> bool:
        """Asked in each turn, ten times a second. True once the search stops and all that ran has left."""
        self._searcher.look_for_starts()
        self._control.poll(over=self._searcher.over)
        return self._control.stopping and not self._searcher.busy
