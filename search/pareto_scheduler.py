"""Ray Tune's scheduler: lets the searcher hear what a worker reports, and tells the worker what comes next.

One Ray Tune trial is a worker's whole life: trials that have ended leave it and others join in their places (one call
to its actor, which lands before its next step), which takes milliseconds. A new Ray Tune trial on a reused actor takes
0.4 s and more. A worker that dies is a Ray Tune trial that failed; the searcher decides what is run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    from lorafront.search.optuna_searcher import OptunaSearcher


class ParetoScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray is untyped
    """Ray Tune calls this before the searcher itself."""

    def __init__(self, searcher: OptunaSearcher) -> None:
        """Args: searcher: decides, and writes everything down."""
        super().__init__()
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles the scheduler into files that we never read."""
        return {}

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Called in each turn. A worker that waits for a type of device that has gone would let all others wait."""
        if stranded := self._searcher.stranded():
            for trial in tune_controller.get_trials():
                if trial.trial_id in stranded:
                    tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Hand on what a worker reports; it ends where it has nothing left to do."""
        del tune_controller
        told = self._searcher.hear(trial.trial_id, result)
        if not self._searcher.works(trial.trial_id):
            return str(self.STOP)
        if told:
            trial.temporary_state.ray_actor.change.remote(**told)
        return str(self.CONTINUE)
