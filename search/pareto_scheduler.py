"""Ray Tune's scheduler: ends trials that the searcher's stopping rule gives up, and gives their workers the next ones.

One Ray Tune trial is a worker's whole life: when its configuration has ended, the next one is handed to the same actor
(a call to an actor that lands before its next step), which takes milliseconds. A new Ray Tune trial on a reused actor
takes 0.4 s and more. A worker that dies is a Ray Tune trial that failed; the searcher decides what is run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    from lorafront.search.optuna_searcher import OptunaSearcher


class ParetoScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray is untyped
    """Asks the searcher about every rung; Ray Tune calls this before the searcher itself."""

    def __init__(self, searcher: OptunaSearcher) -> None:
        """Args: searcher: decides, and writes everything down."""
        super().__init__()
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles the scheduler into files that we never read."""
        return {}

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Record a rung; where the configuration has ended, go on with the next one in the same worker."""
        del tune_controller
        if not self._searcher.judge(trial.trial_id, result):
            return str(self.CONTINUE)
        self._searcher.on_trial_complete(trial.trial_id, result)
        return str(self.CONTINUE) if self._refill(trial) else str(self.STOP)

    def _refill(self, trial: Trial) -> bool:
        """Hand the worker the next configuration; False where there is none for it."""
        actor = trial.temporary_state.ray_actor
        config = self._searcher.suggest(trial.trial_id, here=True) if actor is not None else None
        if not isinstance(config, dict):
            return False
        trial.set_config(config)
        actor.begin.remote(config)
        return True
