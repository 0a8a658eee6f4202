"""Every window between two writes, with a kill or a full disk in it; without Ray, in processes of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_support import KILLED, TRIALS, Forks, verdict
from servers import PASSWORD
from support import PROJECT

from lorafront.search.paths import RootPaths
from lorafront.search.study_table import read_study
from lorafront.trainables import fault_points
from lorafront.trainables.fault_points import POINTS
from lorafront.trainables.outcome import Outcome

NEED_MORE = {"mid_mlflow", "mid_export"}  # an MLflow store, a trained adapter: test_rows.py
HERE = sorted(set(POINTS) - NEED_MORE)
WRITES = ["mid_ckpt_write", "before_result_rename", "before_tell", "after_outcome_before_tell"]


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"])
def forks(request: pytest.FixtureRequest) -> Iterator[Forks]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "PostgreSQL":
            patch.setenv("LORAFRONT_DATABASE", request.getfixturevalue("postgres_server").url())
            patch.setenv("PGPASSWORD", PASSWORD)
        server = Forks()
        yield server
        server.close()


def test_the_points_are_those_of_the_code() -> None:
    """Each named point stands in the code once or more, and the code names no other."""
    code = "".join(file.read_text() for folder in ("search", "trainables") for file in (PROJECT / folder).glob("*.py"))
    assert set(re.findall(r'reached\("(\w+)"\)', code)) == set(POINTS)


@pytest.mark.parametrize("text", ["nowhere", "before_tell:explode", "before_tell:kill:soon"])
def test_a_fault_that_cannot_happen_is_refused(text: str) -> None:
    """A point, an action or a number that does not exist is an error, since a test that uses it would prove nothing."""
    with pytest.raises(ValueError, match="FAULT_AT must be"):
        fault_points.arm(text)


@pytest.mark.parametrize("point", HERE)
def test_a_kill_at_any_point_loses_nothing(point: str, forks: Forks, tmp_path: Path) -> None:
    """A process that is killed between two writes leaves a search that the next one ends as if nothing had happened."""
    nth = 1 if point == "before_front_rename" else 2
    assert forks.drive(tmp_path, f"{point}:kill:{nth}") == KILLED
    assert forks.drive(tmp_path) == 0
    found = verdict(tmp_path)
    assert found.problems == ()
    assert RootPaths(tmp_path).search("s").front_json.is_file()


@pytest.mark.parametrize("point", WRITES)
def test_a_full_disk_at_a_write_stops_and_loses_nothing(point: str, forks: Forks, tmp_path: Path) -> None:
    """A write that finds no room stops the search as it is; with room again it goes on, and no trial has failed."""
    assert forks.drive(tmp_path, f"{point}:enospc:2") == 5
    assert forks.drive(tmp_path) == 0
    table = read_study(RootPaths(tmp_path).search("s").study_db)
    assert [trial.outcome for trial in table.counted] == [Outcome.COMPLETE] * TRIALS
    assert verdict(tmp_path).problems == ()
