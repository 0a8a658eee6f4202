"""Searches that were submitted: what is kept of them, how often they come back by themselves, and what stops them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafront.search.ownership import owned
from lorafront.search.paths import RootPaths
from lorafront.search.search_file import parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.submitted import TRIES, Record, Submitted, come_back, go_on, hold, shared_root, submit
from lorafront.search.travel import Luggage
from lorafront.spaces.errors import InvalidInput, SearchNotFound, SearchOwned
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report


class Drivers:
    """Implements `Jobs`: drivers that live until they are said to be gone."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.started: list[str] = []
        self.has: dict[str, float] = {}

    def driver_of(self, name: str) -> str:
        return f"job of {name}" if name in self.alive else ""

    def drive(self, name: str, root: Path) -> str:
        assert root.is_absolute()
        self.alive.add(name)
        self.started.append(name)
        return f"{name}-{len(self.started)}"

    def resources(self) -> dict[str, float]:
        return dict(self.has)


@pytest.fixture
def root(tmp_path: Path) -> RootPaths:
    return RootPaths(tmp_path / "root")


@pytest.fixture
def jobs() -> Drivers:
    return Drivers()


@pytest.fixture
def search(root: RootPaths, jobs: Drivers, tmp_path: Path) -> Submitted:
    """One that was submitted, and whose driver was lost before it began."""
    (tmp_path / "x.yaml").write_text("name: s")
    found = Submitted(root, "s")
    luggage = Luggage(PurePosixPath("in"), {PurePosixPath("in/search.yaml"): tmp_path / "x.yaml"})
    assert submit(found, luggage, ["--engine", "toy"], jobs) == "s-1"
    jobs.alive.clear()
    return found


def came_back(root: RootPaths, jobs: Drivers, patience: float = 0) -> list[str]:
    return [f"{one.name} {one.said}" for one in come_back(root, jobs, patience)]


def record_a_trial(search: Submitted) -> None:
    search.paths.folder.mkdir(exist_ok=True)
    file = parse_search({"name": "s", "model": "m", "data": {"path": "d"}})
    ledger = StudyLedger(search.paths.study_db, file, create=not search.paths.has_study())
    number, _ = ledger.ask() or (0, None)
    ledger.tell(number, Report(100, {"perplexity": 1.0, "peak_vram_gb": 1.0}, Outcome.COMPLETE))
    ledger.close()


def test_what_travelled_is_kept(search: Submitted, root: RootPaths) -> None:
    """Under the root, for its owner alone, with how it is to be run; no search stands under its name yet."""
    assert search.file.read_text() == "name: s"
    assert search.file.is_relative_to(root.root)
    assert search.read() == Record(base="in", options=("--engine", "toy"))
    assert root.submitted("s").stat().st_mode & 0o077 == 0
    assert search.paths.is_unused()
    assert root.names() == []


def test_it_comes_back_a_few_times_only(search: Submitted, root: RootPaths, jobs: Drivers) -> None:
    """Drivers that record nothing new are started so often in a row, and no more."""
    for number, left in enumerate(reversed(range(TRIES)), start=2):
        assert came_back(root, jobs) == [f"s goes on as job s-{number}; {left} more tries without anything new"]
        jobs.alive.clear()
    assert "does not come back by itself; go on with: lorafront resume s" in came_back(root, jobs)[0]
    assert jobs.started == ["s"] * (TRIES + 1)
    assert go_on(search, [], jobs)
    assert search.read().tries == TRIES


def test_progress_gives_it_all_tries_again(search: Submitted, root: RootPaths, jobs: Drivers) -> None:
    """A trial that was recorded since the last one counts."""
    for _ in range(TRIES - 1):
        came_back(root, jobs)
        jobs.alive.clear()
    record_a_trial(search)
    assert came_back(root, jobs) == [f"s goes on as job s-4; {TRIES - 1} more tries without anything new"]


def test_it_comes_back_once(search: Submitted, root: RootPaths, jobs: Drivers) -> None:
    """While its driver lives there is no other one, whether it is a job or somebody's process."""
    came_back(root, jobs)
    assert came_back(root, jobs) == ["s is being run by job job of s"]
    with pytest.raises(SearchOwned, match="is being run by job job of s"):
        go_on(search, [], jobs)
    jobs.alive.clear()
    assert not search.paths.folder.exists()
    search.paths.folder.mkdir()
    with owned(search.paths):
        assert came_back(root, jobs) == ["s is being run by another process"]
        with pytest.raises(SearchOwned, match="another process"):
            submit(search, Luggage(PurePosixPath(), {}), [], jobs)
    assert jobs.started == ["s", "s"]


def test_one_that_is_damaged_holds_up_no_other(search: Submitted, root: RootPaths, jobs: Drivers) -> None:
    """It is said, and left alone."""
    record, study = root.submitted("a") / "record.json", root.search("b").study_db
    Submitted(root, "b").write(Record())
    for file in (record, study):
        file.parent.mkdir()
        file.write_text("nonsense")
    said = came_back(root, jobs)
    assert [line.split(":")[0] for line in said[:2]] == ["a does not come back", "b does not come back"]
    assert said[2].startswith("s goes on")
    assert search.read().tries == TRIES - 1


def test_nodes_that_are_to_join_are_waited_for(search: Submitted, root: RootPaths, jobs: Drivers) -> None:
    """For a while for all that there were; for ever for a GPU, and that costs no try."""
    jobs.has = {"CPU": 8, "GPU": 4}
    go_on(search, [], jobs)
    assert search.read().had == jobs.has
    jobs.alive.clear()
    jobs.has = {"CPU": 2, "GPU": 0}
    assert came_back(root, jobs) == [
        "s waits: the cluster has 0 of 4 GPUs; run this again once its nodes have joined"
    ]  # fmt: skip
    assert search.read().tries == TRIES
    jobs.has = {"CPU": 4, "GPU": 2}
    assert came_back(root, jobs)[0].startswith("s goes on")
    assert search.read().had == jobs.has


@given(st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(0, 9)),
       st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(0, 9)))  # fmt: skip
def test_patience_only_makes_less_of_it(had: dict[str, float], has: dict[str, float]) -> None:
    """Who may go on at once may go on later, and then something of each kind that there was is enough."""
    record = Record(had=had)
    late, at_once = record.lacks(has, late=True), record.lacks(has, late=False)
    assert at_once or not late
    assert bool(late) == any(count and not has.get(kind) for kind, count in had.items())


def test_who_stops_it_stops_it(search: Submitted, root: RootPaths, jobs: Drivers) -> None:
    """It comes back only when its user wants it to."""
    assert hold(root, "s")
    assert not hold(root, "s")
    assert came_back(root, jobs) == ["s was stopped; go on with: lorafront resume s --submitted"]
    go_on(search, ["--devices", "1x8GB"], jobs)
    assert search.read() == Record(base="in", options=("--devices", "1x8GB"))


def test_one_that_was_not_submitted_is_not_held(root: RootPaths) -> None:
    """`stop` leaves nothing behind for it, nor for a name that is none."""
    assert not hold(root, "other")
    assert not hold(root, "../other")
    assert not root.root.exists()


def test_a_search_that_began_otherwise_becomes_a_job(root: RootPaths, jobs: Drivers) -> None:
    """`resume --submitted` takes what is there, and nothing that is not."""
    other = Submitted(root, "other")
    with pytest.raises(SearchNotFound, match="no search 'other'"):
        go_on(other, [], jobs)
    root.make()
    record_a_trial(other)
    go_on(other, [], jobs)
    assert other.read() == Record(stored=1)


@pytest.mark.parametrize(("code", "done"), [(0, True), (4, True), (2, False), (5, False), (1, False), (6, False)])
def test_a_good_end_is_the_end(code: int, *, done: bool) -> None:
    """A front, or none; all else may come back, also what was refused: a server may have been away."""
    record = Record().ended(code)
    assert record.done == done
    assert (record.next_try(1) is None) == done


@given(st.lists(st.integers(0, 3), max_size=30))
def test_tries_are_bounded_by_progress(news: list[int]) -> None:
    """There are never more drivers in a row without anything new than `TRIES`, and never fewer before it gives up."""
    record, stored, idle = Record(), 0, 0
    for new in news:
        stored += new
        idle = 1 if new else idle + 1
        following = record.next_try(stored)
        assert (following is None) == (idle > TRIES)
        if following is None:
            return
        record = following


def test_a_root_that_is_nowhere_in_particular_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job of a cluster has a current folder of its own."""
    for value in ("", "runs"):
        monkeypatch.setenv("LORAFRONT_ROOT", value)
        with pytest.raises(InvalidInput, match="absolute path on storage"):
            shared_root(None)
