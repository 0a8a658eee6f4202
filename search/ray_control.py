"""Ray Tune's hooks into the driver's loop: thin, all decisions are those of `Control`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from lorafront.search.control import Control


class RayControl(tune.Callback, tune.Stopper):  # type: ignore[misc]  # Ray is untyped
    """Lets the control look around in each turn of the loop, tells it when workers are busy, and ends the loop."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._trials: Sequence[Trial] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles callbacks and stoppers into files that we never read."""
        return {}

    def on_step_begin(self, *, trials: Sequence[Trial], **_: Any) -> None:
        """A turn of the loop, at least ten times a second."""
        self._trials = trials
        self._control.poll()

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:
        """A worker starts on a trial. Without GPUs each worker counts as one."""
        gpus = trial.placement_group_factory.required_resources.get("GPU", 0.0)
        self._control.attempt_began(trial.trial_id, gpus or 1.0)

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:
        """It ended or was paused."""
        self._control.attempt_ended(trial.trial_id)

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:
        """Its worker died too often."""
        self._control.attempt_ended(trial.trial_id)

    def on_trial_recover(self, *, trial: Trial, **_: Any) -> None:
        """Its worker died, and another one will start on it."""
        self._control.attempt_ended(trial.trial_id)

    def __call__(self, *_: Any) -> bool:
        """No trial is stopped here: they leave by themselves."""
        return False

    def stop_all(self) -> bool:
        """True once the search stops and all that ran has paused; what waits for a worker goes on with `resume`."""
        return self._control.stopping and not any(trial.status == Trial.RUNNING for trial in self._trials)
