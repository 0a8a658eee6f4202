"""Start points of a search: which run, in which order, and that each runs once whatever happens in between."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import TINY_LLAMA

from lorafront.search.paths import RootPaths
from lorafront.search.preflight import check
from lorafront.search.prepared import Prepared
from lorafront.search.run import resume_search, run_search
from lorafront.search.search_file import parse_search, read_search_file
from lorafront.search.start_points import Start, Surroundings, starts
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import read_study
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.lora import LoraConfiguration, LoraSpace, resolve
from lorafront.spaces.presets import PRESETS
from lorafront.spaces.start_points import StartPoints, overlap_of_groups
from lorafront.trainables.config import TrainingConfig
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report

DEFAULTS = TrainingConfig(rows=8).defaults()
SMALL = {"rank": [4, 16], "alpha": {"ratio": [1, 2]}, "modules": ["query+value", "attention"], "bias": "none",
         "quantization": ["nf4", "bf16"], "dropout": 0.0, "learning_rate": [2e-4, 1e-3]}  # fmt: skip


def surroundings(space: dict[str, Any], breaks: Callable[[LoraConfiguration], str] = lambda _: "") -> Surroundings:
    return Surroundings(LoraSpace.model_validate(space), DEFAULTS, overlap_of_groups, lambda lora: lora, breaks)


def labels(chosen: dict[str, Any], trials: int, space: dict[str, Any] | None = None) -> list[str]:
    found = starts(StartPoints.model_validate(chosen), surroundings(space or {}), trials)
    return [start.label for start in found.points]


@pytest.mark.parametrize(
    ("own", "trials", "shipped"), [(0, 32, 5), (0, 16, 4), (0, 4, 1), (0, 1, 1), (2, 8, 2), (4, 4, 0), (6, 4, 0)]
)
def test_shipped_points_take_a_quarter_of_the_budget(own: int, trials: int, shipped: int) -> None:
    """At most a quarter, at least one, and none in place of the user's own, which are always all there."""
    points = [{"rank": 4, "learning_rate": 1e-5 * (i + 1)} for i in range(own)]
    expected = [preset.name for preset in PRESETS[:shipped]] + [f"start_points[{i}]" for i in range(own)]
    assert labels({"points": points}, trials) == expected


def test_shipped_points_can_be_switched_off() -> None:
    """With `recommended: false` only the user's own are left."""
    assert labels({"recommended": False, "points": [{"rank": 4}]}, 32) == ["start_points[0]"]


def test_equal_points_are_one() -> None:
    """Presets that a small space makes equal, and own points that say the same in two ways, are tried once."""
    points = [{"rank": 16, "alpha": 32}, {"rank": 16, "alpha": {"ratio": 2}}, {"rank": 4}]
    space = {**SMALL, "modules": "attention", "quantization": "nf4", "learning_rate": 2e-4}
    found = labels({"points": points}, 400, space)
    assert found == ["8-12 GB", "start_points[0]", "start_points[2]"]


def test_points_that_break_a_limit_are_not_tried() -> None:
    """A shipped one is left out with a note; the user's own is an error at its place."""
    around = surroundings(SMALL, lambda lora: "too large" if lora.rank > 4 else "")
    found = starts(StartPoints.model_validate({"points": [{"rank": 4}, {"rank": 16}]}), around, 400)
    assert [point.params["rank"] for point in found.points if not point.own] == [4]
    assert [str(problem) for problem in found.problems] == ["start_points[1]: is in vain: too large"]
    assert "start point recommended default is left out: too large" in found.notes


def test_a_point_outside_the_space_is_an_error_at_its_line(tmp_path: Path) -> None:
    """In both forms of the section, with the column of the key, what was found and what there is."""
    text = "name: n\nmodel: m\ndata: {path: d}\nspace: {rank: [4, 8]}\nstart_points:\n"
    file = tmp_path / "search.yaml"
    for own, place in (
        ("  - {rank: 8}\n  - {rank: 16}\n", "search.yaml:7:6  start_points[1].rank: rank 16 is not in the space"),
        ("  points:\n    - {alpha: {ratio: 9}}\n", "search.yaml:7:8  start_points.points[0].alpha: alpha / rank 9"),
        ("  - {rnak: 8}\n", "search.yaml:6:6  start_points[0].rnak: unknown key. Did you mean 'rank'?"),
        ("  points: [{rank: 0}]\n", "search.yaml:6:13  start_points.points[0].rank: must be >= 1 (got 0)"),
        ("  - {alpha: {ratio: 1, absolute: 2}}\n", "start_points[0].alpha: give ratio or absolute, one of the two"),
        ("  recomended: false\n", "search.yaml:6:3  start_points.recomended: unknown key. Did you mean 'recommended'?"),
    ):
        file.write_text(text + own)
        with pytest.raises(InvalidInput) as caught:
            read_search_file(file)
        assert place in str(caught.value)


def ledger(path: Path, *, create: bool = True, **sections: Any) -> StudyLedger:
    search = parse_search({"name": "s", "model": "m", "data": {"path": "d"}, "space": SMALL, **sections})
    return StudyLedger(path, search, create=create)


def start(**values: Any) -> Start:
    full = {"rank": 4, "alpha_ratio": 1, "modules": "attention", "quantization": "nf4", "dropout": 0.0, "bias": "none",
            "learning_rate": 2e-4, **values}  # fmt: skip
    return Start("own", full, own=True)


THREE = [start(), start(rank=16), start(modules="query+value", quantization="bf16", learning_rate=1e-3)]


def complete(lora: LoraConfiguration) -> Report:
    session = ToySession(lora)
    session.train(100)
    return Report(100, dict(session.evaluate()), Outcome.COMPLETE)


def test_start_points_come_first_and_once(tmp_path: Path) -> None:
    """They are the first trials, as Optuna's own fixed parameters; the sampler's never repeat them."""
    study = ledger(tmp_path / "study.db")
    study.keep_starts(THREE)
    asked = [study.ask() for _ in range(8)]
    expected = [resolve(point.params, DEFAULTS) for point in THREE]
    assert [lora for _, lora in asked[:3]] == expected
    assert len({lora.fingerprint for _, lora in asked}) == 8
    assert [number for number, _ in asked[:3]] == [0, 1, 2]


@pytest.mark.parametrize("told", [0, 1, 2, 3])
def test_a_search_that_goes_on_adds_no_start_point_again(tmp_path: Path, told: int) -> None:
    """However far the first driver came, each start point is one trial, and reopening adds nothing to the study."""
    path = tmp_path / "study.db"
    first = ledger(path)
    first.keep_starts(THREE)
    for _ in range(told):
        number, lora = first.ask()
        first.tell(number, complete(lora))
    for _ in range(3):
        again = ledger(path, create=False)
        again.keep_starts([start(rank=16, learning_rate=1e-3)])  # another release ships other points
    assert len(read_study(path).trials) == told
    asked = [again.ask() for _ in range(4 - told)]
    fingerprints = [trial.lora.fingerprint for trial in read_study(path).trials]
    assert fingerprints[:3] == [resolve(point.params, DEFAULTS).fingerprint for point in THREE]
    assert len(set(fingerprints)) == 4
    assert [number for number, _ in asked] == list(range(told, 4))


def test_a_start_point_is_in_the_study_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """Its row has values and configuration at once, so a driver that dies at any moment leaves no half of it."""
    path = tmp_path / "study.db"
    first = ledger(path)
    first.keep_starts(THREE)
    first.ask()
    with sqlite3.connect(path) as database:
        states = database.execute("SELECT state FROM trials").fetchall()
        count = database.execute("SELECT COUNT(*) FROM trial_params").fetchone()
    database.close()
    assert (states, count) == ([("RUNNING",)], (5,))
    assert ledger(path, create=False).running() == [(0, resolve(THREE[0].params, DEFAULTS))]


@pytest.fixture
def checked(text_file: Path, tmp_path: Path) -> Callable[..., Prepared]:
    def run(**sections: Any) -> Prepared:
        data = {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8}
        base = {"name": "x", "model": str(TINY_LLAMA), "data": data, "training": {"rows": 16, "batch_size": 4}}
        return check(parse_search({**base, **sections}), RootPaths(tmp_path / "runs"), tmp_path)

    return run


def test_points_are_said_in_the_words_of_the_model(checked: Callable[..., Prepared]) -> None:
    """A choice that is another one on this model, and a bias that it does not have, are found where they are now."""
    space = {"modules": ["attention", "q_proj+k_proj+v_proj+o_proj"], "bias": ["none", "all"]}
    point = {"rank": 8, "modules": "q_proj+k_proj+v_proj+o_proj", "bias": "all"}
    prepared = checked(space=space, start_points={"recommended": False, "points": [point]})
    (only,) = prepared.starts.points
    lora = prepared.configuration(only.params)
    assert (lora.rank, lora.modules, lora.bias) == (8, "attention", "none")


def test_moved_points_are_said(checked: Callable[..., Prepared]) -> None:
    """What a shipped point had to give up for the space is a note; one that lies inside needs none."""
    prepared = checked(space={"rank": [4, 16], "bias": "none"}, budget={"trials": 12})
    notes = [note for note in prepared.notes if "start point" in note]
    assert notes == [
        "start point 6-8 GB is moved into the space: rank 8 to 4, quantization nf4_double to nf4",
        "start point over 16 GB is moved into the space: rank 256 to 16",
    ]
    assert [point.label for point in prepared.starts.points] == ["recommended default", "6-8 GB", "over 16 GB"]


def test_a_search_runs_its_start_points_and_resuming_changes_no_row(
    ray_session: None, text_file: Path, tmp_path: Path
) -> None:
    """The whole of it: presets and own points are the first trials, and three resumes leave every row as it is."""
    root = RootPaths(tmp_path)
    data = {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8}
    search = parse_search(
        {"name": "starts", "model": str(TINY_LLAMA), "data": data, "training": {"rows": 32, "rungs": 2},
         "space": SMALL, "start_points": [{"rank": 4, "learning_rate": 1e-3}], "budget": {"trials": 8}}
    )  # fmt: skip
    table = run_search(search, root, engine="toy")
    assert len(table.counted) == 8
    own = [trial for trial in table.trials[:3] if (trial.lora.rank, trial.lora.learning_rate) == (4, 1e-3)]
    assert [trial.number for trial in own] == [2]
    assert table.trials[0].lora.label == "r16 a32 attention nf4"

    def rows() -> list[Any]:
        with sqlite3.connect(root.search("starts").study_db) as database:
            tables = ("trials", "trial_user_attributes", "trial_system_attributes", "trial_params", "trial_values")
            found = [database.execute(f"SELECT * FROM {name}").fetchall() for name in tables]
        database.close()
        return found

    before = rows()
    for _ in range(3):
        resume_search("starts", root, engine="toy")
    assert rows() == before
