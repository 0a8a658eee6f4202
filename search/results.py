"""Searches from Python and notebooks: `Search` runs one, `load` opens one, and results are pandas frames.

    from lorafront.search import Search, load
    results = Search("search.yaml").run()      # or Search({"name": …, "model": …, "data": …})
    results.front; results.trials; results.rungs; results.confirm(seeds=3).confirmed
    load("search").recommend("8GB")

Frames have a row for each trial (of `rungs`: for each report), and hyperparameters and measurements as columns, under
the names of the search file. They are read anew from the study each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search.paths import RootPaths, default_root
from lorafront.search.search_file import SearchFile, parse_search, read_search_file
from lorafront.search.study_table import StudyTable, TrialRecord, read_study
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.sizes import parse_size

if TYPE_CHECKING:
    from pandas import DataFrame

    from lorafront.search.confirmation import Confirmation
    from lorafront.search.progress import Observer
    from lorafront.search.recommendation import Recommendation


class Search:
    """A search that is not there yet."""

    def __init__(self, source: str | Path | Mapping[str, Any]) -> None:
        """Read and validate it.

        Args:
            source: a search file, or the mapping that one would hold.

        Raises:
            InvalidInput: all problems, each with its key.
        """
        if isinstance(source, Mapping):
            self.file: SearchFile = parse_search(dict(source))
            self._near = Path.cwd()
        else:
            self.file = read_search_file(Path(source))
            self._near = Path(source).absolute().parent

    def run(
        self, root: str | Path | None = None, observer: Observer | None = None, *, engine: str = "process"
    ) -> Results:
        """Run it to its end.

        Args:
            root: where searches stand; none is `LORAFRONT_ROOT`, else `runs`.
            observer: hears of every trial; none is silence.
            engine: as for `run_search`.

        Raises:
            InvalidInput: it cannot work.
            SearchExists: the name is taken.
            Incomplete: it was interrupted; `load(name).resume()` goes on.
        """
        from lorafront.search.run import run_search

        paths = RootPaths(Path(root) if root is not None else default_root())
        run_search(self.file, paths, observer, near=self._near, engine=engine)
        return Results(self.file.name, paths)


def load(name: str, root: str | Path | None = None) -> Results:
    """The results of a search so far, whether it runs or not.

    Raises:
        SearchNotFound: there is none of that name.
    """
    paths = RootPaths(Path(root) if root is not None else default_root())
    paths.existing(name)
    return Results(name, paths)


class Results:
    """What a search has found; every property reads its study."""

    def __init__(self, name: str, root: RootPaths) -> None:
        """Args: name: of the search. root: where it stands."""
        self.name = name
        self.root = root

    def __repr__(self) -> str:
        table = self.study
        return f"Results({self.name!r}: {len(table.counted)} trials, {len(self.front)} on the front)"

    @property
    def study(self) -> StudyTable:
        """The search and its trials as objects."""
        return read_study(self.root.existing(self.name).study_db)

    @property
    def trials(self) -> DataFrame:
        """Every trial, by number."""
        return _frame(self.study.trials)

    @property
    def front(self) -> DataFrame:
        """Members of the front, the best on the first objective first."""
        from lorafront.search.front import front_of

        return _frame(front_of(self.study))

    @property
    def rungs(self) -> DataFrame:
        """Every report at a rung: learning curves, one after the other."""
        from pandas import DataFrame

        reports = [(trial, report) for trial in self.study.trials for report in trial.rungs]
        return DataFrame([{"trial": t.number, "rows": r.rows, **r.measurements} for t, r in reports])

    @property
    def confirmed(self) -> DataFrame | None:
        """What replicates say of the front, `NAME_low` and `NAME_high` the ends of intervals; None without any."""
        from pandas import DataFrame

        found = self.confirmation
        if found is None:
            return None
        groups = (("kept", found.kept), ("needless", found.needless), ("beaten", found.beaten))
        rows = [
            {
                "trial": entry.trial.number, "verdict": verdict, "seeds": entry.seeds, "probability": entry.probability,
                **entry.values,  # noqa: PD011  # no frame
                **{f"{name}_{end}": ends[side] for name, ends in entry.intervals.items()
                   for side, end in enumerate(("low", "high"))},
            }
            for verdict, entries in groups
            for entry in entries
        ]  # fmt: skip
        return DataFrame(rows).set_index("trial")

    @property
    def confirmation(self) -> Confirmation | None:
        """The same as objects."""
        from lorafront.search.confirm import confirmation_of

        return confirmation_of(self.study, self.root)

    def resume(self, observer: Observer | None = None, *, engine: str = "process") -> Results:
        """Go on with it; see `resume_search`."""
        from lorafront.search.run import resume_search

        resume_search(self.name, self.root, observer, engine=engine)
        return self

    def confirm(
        self, seeds: int | None = None, observer: Observer | None = None, *, engine: str = "process"
    ) -> Results:
        """Train its front again with other seeds; see `confirm_search`."""
        from lorafront.search.confirm import confirm_search

        confirm_search(self.name, self.root, observer, seeds=seeds, engine=engine)
        return self

    def recommend(self, vram: str | None = None, batch: int | None = None) -> Recommendation:
        """One configuration for a GPU such as `8GB`, else the knee of the front; by the replicates where there are any.

        Args:
            vram: memory of the GPU.
            batch: rows of a pass to train with; memory is predicted for it then (search/other_batch.py).

        Raises:
            InvalidInput: the size cannot be read, or nothing can be predicted for that batch.
            NoFront: nothing fits.
        """
        from lorafront.search.confirmation import as_confirmed
        from lorafront.search.recommendation import recommend

        try:
            size = None if vram is None else parse_size(vram)
        except ValueError as error:
            raise InvalidInput(str(error)) from error
        found, study = self.confirmation, self.study
        chosen_from = as_confirmed(found) if found else study
        if batch is not None:
            from lorafront.search.other_batch import other_batch

            chosen_from = other_batch(study, chosen_from, self.root.existing(self.name), batch).table
        return recommend(chosen_from, size)

    def generations(
        self, prompts: Sequence[str] | str = "eval", tokens: int = 60, found: Recommendation | None = None
    ) -> DataFrame:
        """What the bare base and the candidates say: a row for each prompt, a column for each candidate.

        Args:
            prompts: texts; or a file of them, or `eval` for evaluation rows of the search.
            tokens: new ones of an answer at most.
            found: whose candidates; none is `recommend()`.

        Raises:
            InvalidInput: a prompt cannot be asked.
            StateUnreadable: an adapter is gone.
        """
        from pandas import DataFrame

        from lorafront.search.generations import Asked, generations

        asked = Asked(prompts, (), tokens) if isinstance(prompts, str) else Asked("", prompts, tokens)
        said = generations(found or self.recommend(), self.study, self.root.existing(self.name), asked)
        rows = [[None if one is None else one.text for one in answers] for answers in said.said]
        columns = [candidate.label for candidate in said.candidates]
        frame = DataFrame(rows, columns=columns, index=[prompt.shown for prompt in said.prompts])
        return frame.rename_axis("prompt")

    def export(self, out: str | Path, trials: Sequence[int] = (), formats: Sequence[str] = ()) -> list[Path]:
        """Folders that PEFT loads, and files of other trainers; see `export_front`."""
        from lorafront.search.export import export_front

        return export_front(self.root.existing(self.name), Path(out), trials, formats)


def _frame(trials: Sequence[TrialRecord]) -> DataFrame:
    """A row for each trial, indexed by its number."""
    from pandas import DataFrame, Index

    rows = [
        {
            "state": trial.state, "outcome": trial.outcome.stored if trial.outcome else None,
            **trial.lora.model_dump(mode="json"), "rows": trial.last.rows if trial.last else 0, **trial.measurements,
        }
        for trial in trials
    ]  # fmt: skip
    return DataFrame(rows, index=Index([trial.number for trial in trials], name="trial"))
