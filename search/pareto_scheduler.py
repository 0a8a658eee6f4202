"""Ray Tune's scheduler: ends trials that the searcher's stopping rule gives up, and gives their workers the next ones.

One Ray Tune trial is a worker's whole life: when its configuration has ended, the next one is handed to the same actor
(a call to an actor that lands before its next step), which takes milliseconds. A new Ray Tune trial on a reused actor
takes 0.4 s and more.
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

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """The worker died, and Ray Tune starts another one: with the same configuration, unless it lost too many."""
        del tune_controller
        if self._searcher.lost(trial.trial_id):
            self._searcher.on_trial_complete(trial.trial_id, error=True)
            self._refill(trial)

    def _refill(self, trial: Trial) -> bool:
        """Hand the worker the next configuration; False where there is none."""
        config = self._searcher.suggest(trial.trial_id)
        if not isinstance(config, dict):
            trial.set_config({})  # a worker that is started again with this ends at once
            return False
        trial.set_config(config)  # a worker that is started again begins with what it has now
        actor = trial.temporary_state.ray_actor
        if actor is not None:
            actor.begin.remote(config)
        return True
