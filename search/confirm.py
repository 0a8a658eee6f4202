"""`lorafront confirm`: the replicates of a search's front, as a search of their own beside it.

`NAME-confirm` is a search like others: it has a budget, can be stopped, goes on after a crash, and stands in MLflow.
What it trains follows from what the first search found and from its own results (search/confirmation.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorafront.search.comparison import compared
from lorafront.search.confirmation import Confirmation, confirmation, following, seeds_of
from lorafront.search.front import front_of
from lorafront.search.ownership import is_driven
from lorafront.search.paths import RootPaths, located
from lorafront.search.read_only import refuse_imported
from lorafront.search.search_file import LONGEST, MOST_SEEDS, Confirm, SearchFile
from lorafront.search.study_table import StudyTable, read_study
from lorafront.spaces.errors import InvalidInput, NoFront, SearchExists, SearchNotFound, SearchOwned

if TYPE_CHECKING:
    from lorafront.search.placement import Devices
    from lorafront.search.progress import Observer

CONFIRM, COMPARE, HORIZON = "-confirm", "-compare", "-horizon"


def confirm_search(
    name: str,
    root: RootPaths,
    observer: Observer | None = None,
    *,
    seeds: int | None = None,
    hours: float | None = None,
    held_out: str | None = None,
    longer: bool = False,
    engine: str = "process",
    devices: Sequence[Devices] = (),
) -> Confirmation:
    """Train the front of a search again with other seeds, or go on with that.

    Args:
        name: of the search.
        root: where searches stand.
        observer: hears of every replicate; none is silence.
        seeds: of a configuration at most; none is what was asked for before, else what the search's file says.
        hours: that it may take, all calls together; none likewise.
        held_out: file, folder or hub name of rows that the search never saw; none is what its data leaves.
        longer: with twice the rows, in a search of its own: do those that won a short training win a longer one?
        engine: as for `run_search`.
        devices: as for `run_search`.

    Raises:
        NoFront: there is nothing to confirm, or no replicate came to its end.
        InvalidInput: it is itself a confirmation, or no rows are left that it has not seen.
        SearchOwned: the search, or its confirmation, is being run.
        Incomplete: it was interrupted; the same call goes on.
    """
    from lorafront.search.run import resume_search, run_search

    suffix = HORIZON if longer else CONFIRM
    paths, own = root.existing(name), root.search(name_of(name, suffix))
    if is_driven(paths):
        raise SearchOwned(f"search {name!r} is being run; confirm it when it has ended")
    table = read_study(paths.study_db)
    refuse_imported(table.search, "confirm")
    if table.search.confirms is not None:
        raise InvalidInput(f"{name} is itself a confirmation, of {table.search.confirms}")
    if not front_of(table):
        raise NoFront(f"search {name!r} has no feasible trial at full fidelity to confirm")
    earlier = replicates_of(name, root, suffix) if own.has_study() else None
    before = (earlier or table).search.confirm or Confirm()
    if earlier is not None:
        before = before.model_copy(update={"hours": earlier.search.budget.hours})  # which `extend` may have raised
    given = {"seeds": seeds, "hours": hours}
    chosen = before.model_copy(update={key: value for key, value in given.items() if value is not None})
    held_out = located(held_out, paths.folder) if held_out is not None else None
    if earlier is not None:
        if held_out is not None and held_out != earlier.search.data.test_path:
            raise InvalidInput(f"{own.name} was begun with other held-out rows; to begin anew delete {own.folder}")
        resume_search(own.name, root, observer, confirm=chosen, engine=engine, devices=devices)
    else:
        search = replicates(table, chosen, held_out, apart=bool(devices) or _gpus(), longer=longer)
        run_search(search, root, observer, near=paths.folder, engine=engine, devices=devices)
    found = confirmation_of(table, root, suffix)
    if found is None:
        raise NoFront(f"too few replicates of {name!r} have ended to say anything; see: lorafront status {own.name}")
    return found


def confirmation_of(table: StudyTable, root: RootPaths, suffix: str = CONFIRM) -> Confirmation | None:
    """What the replicates of a search say so far; None where there are none."""
    if len(table.search.name) > LONGEST:
        return None
    found = None
    with contextlib.suppress(SearchNotFound, SearchExists):
        own = replicates_of(table.search.name, root, suffix)
        found = confirmation(table, own, (own.search.confirm or Confirm()).seeds)
    if found is None or suffix != CONFIRM:
        return found
    with contextlib.suppress(SearchNotFound, SearchExists):
        baselines = replicates_of(table.search.name, root, COMPARE)
        found = replace(found, compared=compared(table, found, own, baselines))
    return found


def name_of(name: str, suffix: str = CONFIRM) -> str:
    """Of the search that holds the replicates of its front, or of what it is compared with.

    Raises:
        InvalidInput: the name leaves no room for the suffix.
    """
    if len(name) > LONGEST:
        raise InvalidInput(f"{name} is too long a name for {name}{suffix}: at most {LONGEST} characters")
    return f"{name}{suffix}"


def replicates(
    table: StudyTable, confirm: Confirm, held_out: str | None = None, *, apart: bool, longer: bool = False
) -> SearchFile:
    """The search file of the replicates.

    Args:
        table: the search.
        confirm: how many, for how long.
        held_out: where rows are that it never saw; none is what its data leaves.
        apart: on GPUs, where each replicate gets whole ones; its peak and its times are then its own.
        longer: with twice the rows.
    """
    search = table.search
    seeds = seeds_of(table, MOST_SEEDS)  # any that a later call may ask for: a parameter of a study keeps its range
    share = search.resources.gpus_per_trial
    said = search.model_dump(mode="json")
    changes: dict[str, Any] = {
        "name": name_of(search.name, HORIZON if longer else CONFIRM),
        "confirms": search.name,
        "confirm": {**confirm.model_dump(), "baselines": []},
        "data": {**said["data"], "evaluate_on": "held_out", **({"test_path": held_out} if held_out else {})},
        "space": {**said["space"], "seed": {"low": seeds[0], "high": seeds[-1]}},
        "training": {**said["training"], "rungs": 1, **(_twice(table) if longer else {})},
        "engine": "process",
        "sampler": "random",
        "early_stopping": "off",
        "budget": {"trials": max(1, len(following(table, None, confirm.seeds))), "hours": confirm.hours},
        "start_points": {"recommended": False},
        "baseline": None,  # it is compared with the front in the search itself
        "warm_start": [],
    }
    if apart:
        changes["resources"] = {**said["resources"], "gpus_per_trial": 1 if share == "auto" else max(1, share)}
    return SearchFile.model_validate({**said, **changes})


def _twice(table: StudyTable) -> dict[str, Any]:
    """A training of twice the rows; it begins again with rows that it has seen where the data has no more."""
    return {"rows": 2 * int(table.data["rungs"][-1]), "steps": None, "epochs": None}


def replicates_of(name: str, root: RootPaths, suffix: str = CONFIRM) -> StudyTable:
    """The replicates of a search's front, or of what it is compared with.

    Raises:
        SearchNotFound: there are none.
        SearchExists: another search has their name.
    """
    own = root.existing(name_of(name, suffix))
    table = read_study(own.study_db)
    if table.search.confirms != name:
        raise SearchExists(f"{own.folder} is another search than the one with the replicates of {name!r}; move it away")
    return table


def _gpus() -> bool:
    import torch

    return torch.cuda.is_available()
