"""`lorafront doctor`: silent about a search that is whole, and names each thing that is not, with what mends it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fault_support import drive

from lorafront.search.doctor import STATUSES, examine, examine_runs
from lorafront.search.doctor_report import as_json, examined, lines
from lorafront.search.front import front_of
from lorafront.search.mlflow_reader import Run
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.study_table import StudyTable, read_study


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a search of three toy trials that came to its end."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAFRONT_WITNESS", "")  # `drive` sets it
        drive(root)
    return root


@pytest.fixture
def paths(whole: Path, tmp_path: Path) -> SearchPaths:
    """A copy, to be damaged."""
    shutil.copytree(whole, tmp_path / "root")
    return RootPaths(tmp_path / "root").search("s")


def sql(paths: SearchPaths, statement: str) -> None:
    with closing(sqlite3.connect(paths.study_db)) as database:
        database.execute(statement)
        database.commit()


DAMAGES: dict[str, tuple[Callable[[SearchPaths], object], str, bool]] = {
    "checkpoint": (
        lambda paths: (paths.trial(0, 1).checkpoint(32) / "toy.json").write_text("{}"),
        "trial 0 cannot be exported",
        True,
    ),
    "result": (
        lambda paths: paths.trial(1, 1).result.write_text(paths.trial(2, 1).result.read_text()),
        "says other numbers than the study has for trial 1",
        False,
    ),
    "torn result": (lambda paths: paths.trial(1, 1).result.write_text("{"), "result.json cannot be read", False),
    "stray": (lambda paths: shutil.copytree(paths.trials / "00002", paths.trials / "00077"), "belongs to no", False),
    "half-written": (lambda paths: (paths.trial(2, 1).path / "ckpt-32.tmp-0").mkdir(), "left half-written", False),
    "front": (lambda paths: paths.front_json.write_text("[]"), "is not the front of the study", False),
    "running": (
        lambda paths: sql(paths, "UPDATE trials SET state = 'RUNNING' WHERE number = 2"),
        "trial 2 finished and is not recorded",
        False,
    ),
    "value": (
        lambda paths: sql(paths, "UPDATE trial_values SET value = 1 WHERE trial_id = 1 AND objective = 0"),
        "trial 0: perplexity is 1.0 for the sampler",
        True,
    ),
    "state": (
        lambda paths: sql(paths, "UPDATE trials SET state = 'FAIL' WHERE number = 1"),
        "trial 1 ended as complete and is FAIL",
        True,
    ),
}


def test_a_whole_search_has_nothing_wrong(paths: SearchPaths) -> None:
    """Study, files and front of a search that came to its end fit together."""
    assert examine(paths, read_study(paths.study_db), driven=False) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_found_with_its_fix(paths: SearchPaths, damage: str) -> None:
    """What was changed behind the search's back is named, and whether a command mends it."""
    inflict, words, for_good = DAMAGES[damage]
    inflict(paths)
    found = [f for f in examine(paths, read_study(paths.study_db), driven=False) if words in f.what]
    assert [finding.damage for finding in found] == [for_good]
    assert found[0].fix


def runs_of(table: StudyTable) -> list[Run]:
    members = {trial.number for trial in front_of(table)}
    return [
        Run(None, "FINISHED"),
        *(
            Run(
                trial.number,
                STATUSES[trial.state],
                {"perplexity": trial.measurements["perplexity"]},
                {"pareto": str(trial.number in members).lower()},
            )
            for trial in table.trials
        ),
    ]


def test_runs_that_differ_from_the_study_are_found(paths: SearchPaths) -> None:
    """A missing, doubled, unfinished, changed or wrongly tagged run is named, and those of a whole store are not."""
    table = read_study(paths.study_db)
    parent, *runs = runs_of(table)
    assert examine_runs("s", table, [parent, *runs]) == []
    first = runs[0]
    for wrong, words in (
        (runs, "no run of the search"),
        ([parent, *runs[1:]], "trial 0 has no run"),
        ([parent, *runs, first], "2 runs of trial 0"),
        ([parent, replace(first, status="RUNNING"), *runs[1:]], "its MLflow run is RUNNING"),
        ([parent, replace(first, metrics={"perplexity": 1.0}), *runs[1:]], "trial 0 has perplexity"),
        ([parent, *(replace(run, tags={}) for run in runs)], "its MLflow run is tagged otherwise"),
    ):
        assert any(words in finding.what for finding in examine_runs("s", table, wrong)), words


def test_a_lost_store_is_a_finding_that_sync_mends(paths: SearchPaths) -> None:
    """Without its MLflow store a search is whole but for one finding, whose fix is the command that writes it anew."""
    found, notes = examined(RootPaths(paths.folder.parent), "s")
    assert [finding.fix for finding in found] == ["lorafront mlflow-sync s"]
    assert lines("s", found, notes)[-1] == "s: 1 findings"
    assert as_json("s", found, notes)["findings"][0]["fix"] == "lorafront mlflow-sync s"
