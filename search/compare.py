"""`lorafront compare`: the recommended default and full fine-tuning beside the front, on the same terms.

The front's replicates come from `confirm`, which is run first where it has not; the baselines' are a search of their
own, `NAME-compare`, with the same seeds and rows (search/comparison.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorafront.search.comparison import defaults_of, following, middle_of, space_of, stored
from lorafront.search.confirm import COMPARE, confirm_search, confirmation_of, name_of, replicates_of
from lorafront.search.confirmation import Confirmation, seeds_of
from lorafront.search.ownership import is_driven
from lorafront.search.paths import RootPaths
from lorafront.search.search_file import MOST_SEEDS, Baseline, Confirm, FullTuning, SearchFile
from lorafront.search.study_table import StudyTable, read_study
from lorafront.spaces.errors import NoFront, SearchOwned

if TYPE_CHECKING:
    from lorafront.search.placement import Devices
    from lorafront.search.progress import Observer


def compare_search(
    name: str,
    root: RootPaths,
    baselines: Sequence[Baseline],
    observer: Observer | None = None,
    *,
    seeds: int | None = None,
    hours: float | None = None,
    engine: str = "process",
    devices: Sequence[Devices] = (),
) -> Confirmation:
    """Train baselines with the seeds and rows of the front's replicates, or go on with that.

    Args:
        name: of the search.
        root: where searches stand.
        baselines: which; those of earlier calls stay.
        observer: hears of every replicate; none is silence.
        seeds: of a configuration; none is as many as `confirm` may use.
        hours: that the baselines may take, all calls together; none is no limit.
        engine: as for `run_search`.
        devices: as for `run_search`.

    Returns:
        The confirmation, with what is known of the baselines.

    Raises:
        InvalidInput, NoFront, SearchOwned, Incomplete: as `confirm_search`.
    """
    from lorafront.search.run import resume_search, run_search

    paths = root.existing(name)
    if is_driven(paths):
        raise SearchOwned(f"search {name!r} is being run; compare it when it has ended")
    table = read_study(paths.study_db)
    known = confirmation_of(table, root)
    if known is None or known.waiting:
        confirm_search(name, root, observer, seeds=seeds if known is None else None, engine=engine, devices=devices)
    confirmed = replicates_of(name, root)
    earlier = replicates_of(name, root, COMPARE) if root.search(name_of(name, COMPARE)).has_study() else None
    before = (earlier or confirmed).search.confirm or Confirm()
    asked = (table.search.confirm or Confirm()).hours if earlier is None else earlier.search.budget.hours
    chosen = Confirm(
        seeds=seeds or before.seeds,
        hours=hours or asked,
        baselines=[*dict.fromkeys([*before.baselines, *baselines])],
        full_tuning=before.full_tuning or _full_tuning(table),
    )
    own = name_of(name, COMPARE)
    if earlier is not None:
        resume_search(own, root, observer, confirm=chosen, engine=engine, devices=devices)
    else:
        search = baselines_of(table, confirmed, chosen)
        run_search(search, root, observer, near=paths.folder, engine=engine, devices=devices)
    found = confirmation_of(table, root)
    if found is None:
        raise NoFront(f"too few replicates of {name!r} have ended to say anything; see: lorafront status {own}")
    return found


def _full_tuning(table: StudyTable) -> FullTuning:
    """As the search has it, where this machine can run that."""
    from lorafront.trainables.models import cannot_run, device

    kinds = stored(table.search)
    kind = next((kind for kind in kinds if not cannot_run(kind, device())), kinds[0])
    return FullTuning.model_validate({"learning_rate": middle_of(table), "quantization": kind})


def baselines_of(table: StudyTable, confirming: StudyTable, confirm: Confirm) -> SearchFile:
    """The search file of the baselines' replicates.

    Args:
        table: the search.
        confirming: the replicates of its front, whose rows, length and resources are taken.
        confirm: which baselines, how many seeds, for how long.
    """
    said, rungs = confirming.search.model_dump(mode="json"), confirming.data.get("rungs")
    length = {"rows": int(rungs[-1]), "steps": None, "epochs": None} if rungs else {}
    changes = {
        "name": name_of(table.search.name, COMPARE),
        "confirm": confirm.model_dump(),
        "space": space_of(table, seeds_of(table, MOST_SEEDS), confirm.full_tuning or _full_tuning(table)),
        "training": {**said["training"], **defaults_of(table.search), **length},
        "constraints": {},  # full fine-tuning is there to show what it would cost
        "budget": {"trials": max(1, len(following(table, None, confirm))), "hours": confirm.hours},
    }
    return SearchFile.model_validate({**said, **changes})
