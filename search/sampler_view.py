"""What the sampler sees of a study: all of it, in memory.

Optuna's samplers read every running trial from the database at each question; here reading costs nothing, and what was
proposed and is not run leaves no trace in the database. Of a trial that did not come to its end they would learn
nothing, or that it is worse than all others: here one that was stopped stands with the quality that it would have come
to if it had gained what others gained, one that diverged with the worst that was seen. (`mfgp` reads the rungs.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from lorafront.search import study_table
from lorafront.search.learning_curve import original, remaining, transformed
from lorafront.search.samplers import NUMBER, make_sampler
from lorafront.search.search_file import SearchFile
from lorafront.spaces.objectives import minimized
from lorafront.trainables.outcome import Outcome


class SamplerView:
    """A study in memory that hears all that is written into the search's own."""

    def __init__(self, search: SearchFile, trials: Sequence[FrozenTrial]) -> None:
        """Take up the trials of a study.

        Args:
            search: names the sampler.
            trials: as the storage has them.
        """
        self._objectives = search.objective_list
        self._storage = InMemoryStorage()
        asked = sum("fixed_params" not in trial.system_attrs for trial in trials)
        self.study = optuna.create_study(
            storage=self._storage,
            directions=[objective.direction for objective in self._objectives],
            sampler=make_sampler(search, asked),
        )
        self._study_id = self._storage.get_study_id_from_name(self.study.study_name)
        self._ids: dict[int, int] = {}
        self._seen: dict[tuple[int, float], float] = {}  # quality by number and rows, minimized and transformed
        for trial in trials:
            for key, value in trial.user_attrs.items():
                self._hear(trial.number, key, value)
        for trial in trials:
            self.add(trial.number, trial)

    def propose(self) -> Trial:
        """The sampler's next question; `take` or `refuse` it."""
        return self.study.ask()

    def proposed(self, trial: Trial) -> FrozenTrial:
        """All that the sampler has set of a proposal."""
        return self._storage.get_trial(trial._trial_id)  # noqa: SLF001  # Optuna has no public name for it

    def take(self, trial: Trial, number: int, attributes: Mapping[str, Any]) -> None:
        """A proposal is now the study's trial of that number."""
        self._ids[number] = trial._trial_id  # noqa: SLF001  # as above
        for key, value in {NUMBER: number, **attributes}.items():
            self.set(number, key, value)

    def refuse(self, trial: Trial, like: int | None) -> None:
        """End a proposal that is not run.

        One that comes to the configuration of a finished trial by other values (a bias that the modules do not have) is
        told what that one measured, so that the sampler learns it for these values too. The same values again teach
        nothing, and a sampler that counts observations would count one twice.
        """
        same = None if like is None else self.trial(like)
        if same is not None and same.state is TrialState.COMPLETE and same.params != trial.params:
            self.study.tell(trial.number, same.values)
        else:
            self.study.tell(trial.number, state=TrialState.FAIL)

    def add(self, number: int, trial: FrozenTrial) -> None:
        """A trial that was not proposed here."""
        state, values = self._learned(number, trial.state, trial.values, trial.user_attrs)
        template = create_trial(
            state=state,
            values=values,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**trial.user_attrs, NUMBER: number},
            system_attrs=trial.system_attrs,
        )
        self._ids[number] = self._storage.create_new_trial(self._study_id, template)

    def set(self, number: int, key: str, value: Any) -> None:
        """An attribute of a trial."""
        self._storage.set_trial_user_attr(self._ids[number], key, value)
        self._hear(number, key, value)

    def end(self, number: int, state: TrialState, values: Sequence[float] | None) -> None:
        """A trial was told; its outcome and its result are set."""
        trial = self.trial(number)
        state, values = self._learned(number, state, values, trial.user_attrs)
        self.study.tell(trial.number, values, state)

    def trial(self, number: int) -> FrozenTrial:
        """One trial of the study."""
        return self._storage.get_trial(self._ids[number])

    @property
    def trials(self) -> list[FrozenTrial]:
        """All of them, and proposals that were refused; not to be changed."""
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    def _hear(self, number: int, key: str, value: Any) -> None:
        if key.startswith(study_table.RUNG):
            first = minimized(value["measurements"], self._objectives[:1])
            if first and math.isfinite(quality := transformed(first[0], self._objectives[0].name)):
                self._seen[number, float(value["rows"])] = quality

    def _learned(
        self, number: int, state: TrialState, values: Sequence[float] | None, attributes: Mapping[str, Any]
    ) -> tuple[TrialState, Sequence[float] | None]:
        """State and values as the sampler hears them; the same where nothing better is known."""
        result = attributes.get(study_table.RESULT)
        if state is not TrialState.PRUNED or result is None:
            return state, values
        costs = minimized(result["measurements"], self._objectives[1:])
        rows = float(result["rows"])
        if result["outcome"] == Outcome.DIVERGED.stored:
            quality = max(self._seen.values(), default=math.nan)
        else:
            quality = self._seen.get((number, rows), math.nan) + self._still(rows)
        if not math.isfinite(quality) or len(costs) != len(self._objectives) - 1:  # the user's own come at the end
            return state, values
        told = [original(quality, self._objectives[0].name), *costs]
        return TrialState.COMPLETE, [
            -value if objective.direction == "maximize" else value
            for value, objective in zip(told, self._objectives, strict=True)
        ]

    def _still(self, rows: float) -> float:
        """What a trial gains from there on, as far as is known."""
        seen = np.array([(number, at, quality) for (number, at), quality in self._seen.items()]).reshape(-1, 3)
        return remaining(seen[:, 0], seen[:, 1], seen[:, 2]).get(rows, 0.0)
