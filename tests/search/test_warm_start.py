"""Earlier searches as teachers: which compare, what is taken over, and that it is no trial of the new search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import TINY_LLAMA

from lorafront.search.front import front_of
from lorafront.search.mlflow_tracker import open_tracking, sync
from lorafront.search.paths import RootPaths
from lorafront.search.preflight import check
from lorafront.search.run import resume_search, run_search
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.start_points import Start
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import StudyTable, read_study
from lorafront.search.warm_start import Observation, expressed
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.lora import LoraConfiguration, LoraSpace
from lorafront.trainables.config import TrainingConfig
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report

DEFAULTS = TrainingConfig(rows=8).defaults()
SPACE = {"rank": [2, 4, 8, 16], "alpha": {"ratio": [1, 2]}, "modules": ["query+value", "attention"], "bias": "none",
         "quantization": ["nf4", "bf16"], "dropout": 0.0, "learning_rate": [1e-3, 5e-3]}  # fmt: skip


def search_data(name: str, text_file: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "model": str(TINY_LLAMA), "space": SPACE, "budget": {"trials": 6},
        "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
        "training": {"rows": 32, "rungs": 2, "batch_size": 4}, "early_stopping": "off", **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def earlier(
    ray_session: None, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RootPaths, StudyTable]:
    """A finished toy search of six trials under a root."""
    root = RootPaths(tmp_path_factory.mktemp("root"))
    return root, run_search(parse_search(search_data("first", text_file)), root, engine="toy")


def checks(root: RootPaths, text_file: Path, **changes: Any) -> Any:
    data = search_data("second", text_file, warm_start=["first"], **changes)
    return check(parse_search(data), root, root.root)


def test_results_teach_the_sampler_and_nothing_else(earlier: tuple[RootPaths, StudyTable], text_file: Path) -> None:
    """They are complete observations of the Optuna study, and in no budget, front, MLflow run or table of trials."""
    import optuna

    root, first = earlier
    data = search_data(
        "warm", text_file, warm_start=["first"], space={**SPACE, "learning_rate": {"low": 1e-3, "high": 5e-3}}
    )
    table = run_search(parse_search(data), root, engine="toy")
    paths = root.search("warm")
    assert len(table.counted) == 6
    assert len(table.imported) == len(first.complete) == 6
    assert [t.imported_from for t in table.imported] == [f"first trial {t.number}" for t in first.complete]
    assert {t.number for t in table.trials}.isdisjoint(t.number for t in table.imported)
    assert {t.number for t in front_of(table)} <= {t.number for t in table.counted}

    study = optuna.load_study(study_name="search", storage=f"sqlite:///{paths.study_db}")
    taught = [trial for trial in study.trials if "imported_from" in trial.user_attrs]
    objectives = [objective.name for objective in table.search.objective_list]
    assert [trial.state.name for trial in taught] == ["COMPLETE"] * 6
    assert [trial.values for trial in taught] == [[t.measurements[name] for name in objectives] for t in first.complete]

    tracking = open_tracking(table.search, root)
    assert sync(tracking, paths) == len(table.trials)
    before = study.trials
    resume_search("warm", root, engine="toy")
    assert optuna.load_study(study_name="search", storage=f"sqlite:///{paths.study_db}").trials == before


def test_the_seed_says_whether_a_trial_would_give_the_same_numbers(
    earlier: tuple[RootPaths, StudyTable], text_file: Path
) -> None:
    """With another seed the rows come in another order, so the same configuration is worth a trial."""
    for seed, same in ((0, True), (1, False)):
        observations = checks(earlier[0], text_file, seed=seed).warm.observations
        assert [seen.repeatable for seen in observations] == [same] * 6


def test_what_the_user_asks_for_runs_although_it_is_known(
    earlier: tuple[RootPaths, StudyTable], text_file: Path
) -> None:
    """A start point of the user's own runs even where an earlier search has its result."""
    root, first = earlier
    lora = first.complete[0].lora
    assert lora is not None
    point = {"rank": lora.rank, "alpha": lora.alpha, "modules": lora.modules, "quantization": lora.quantization,
             "learning_rate": lora.learning_rate}  # fmt: skip
    data = search_data(
        "asked", text_file, warm_start=["first"], start_points={"recommended": False, "points": [point]},
        budget={"trials": 1},
    )  # fmt: skip
    table = run_search(parse_search(data), root, engine="toy")
    assert [trial.lora for trial in table.counted] == [lora]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objectives": ["perplexity", "adapter_mb"]}, "its objectives peak_vram_gb (minimize), perplexity (minimize)"),
        ({"training": {"rows": 64, "rungs": 2, "batch_size": 4}}, "its rows at full fidelity 32 here 64"),
        ({"training": {"rows": 32, "rungs": 2, "batch_size": 4, "max_grad_norm": 2}},
         "its training.max_grad_norm 1.0 here 2.0"),
        ({"warm_start": ["first", "frist"]}, "Did you mean 'first'?"),
    ],
)  # fmt: skip
def test_searches_that_do_not_compare_are_refused(
    earlier: tuple[RootPaths, StudyTable], text_file: Path, changes: dict[str, Any], words: str
) -> None:
    """Each at its entry, with what differs and both values."""
    with pytest.raises(InvalidInput) as caught:
        check(
            parse_search({**search_data("second", text_file, warm_start=["first"]), **changes}), earlier[0], Path.cwd()
        )
    (problem,) = caught.value.problems
    assert problem.path == ("warm_start", len(changes.get("warm_start", ["first"])) - 1)
    assert words in problem.message


def test_other_data_is_refused(earlier: tuple[RootPaths, StudyTable], text_file: Path) -> None:
    """Other rows of the same file give other numbers."""
    data = {"path": str(text_file), "max_length": 32, "train_rows": 48, "eval_rows": 8}
    with pytest.raises(InvalidInput, match="cannot teach this search: its rows of tokens"):
        checks(earlier[0], text_file, data=data)


def test_results_outside_the_space_are_counted_and_left(earlier: tuple[RootPaths, StudyTable], text_file: Path) -> None:
    """A narrower space takes what it can express, whichever form its alpha has, and says how many it left."""
    root, first = earlier
    few = [trial for trial in first.complete if trial.lora.quantization == "nf4"]
    assert 0 < len(few) < 6
    prepared = checks(root, text_file, space={**SPACE, "quantization": "nf4", "alpha": {"low": 1, "high": 64}})
    assert [seen.lora for seen in prepared.warm.observations] == [trial.lora for trial in few]
    plural = "" if len(few) == 1 else "s"
    assert any(
        note.startswith(f"{len(few)} result{plural} of first teach") and f"{6 - len(few)} more lie outside" in note
        for note in prepared.notes
    )


@pytest.mark.parametrize("warm", [["a", "a"], "a", ["../x"]])
def test_bad_names_are_refused(text_file: Path, warm: Any) -> None:
    """A list of names, each once."""
    with pytest.raises(InvalidInput, match="warm_start"):
        parse_search(search_data("second", text_file, warm_start=warm))


BASE: dict[str, Any] = {"rank": 8, "alpha": 16.0, "modules": "attention", "quantization": "nf4", "dropout": 0.0,
                        "bias": "none", "learning_rate": 1e-3, **DEFAULTS}  # fmt: skip


@pytest.mark.parametrize(
    ("space", "inside"),
    [
        ({"rank": [4, 8], "alpha": {"ratio": [1, 2]}}, True),
        ({"rank": {"low": 2, "high": 9}, "alpha": [16, 32]}, True),
        ({"rank": [4, 8], "alpha": {"ratio": [1, 3]}}, False),
        ({"rank": [4, 16]}, False),
        ({"batch_size": [8, 16]}, True),
        ({"batch_size": [4, 16]}, False),
        ({"bias": ["lora_only", "all"]}, True),
        ({"learning_rate": {"low": 2e-3, "high": 1e-2, "log": True}}, False),
    ],
)
def test_a_configuration_is_expressed_in_another_space(space: dict[str, Any], inside: bool) -> None:
    """Where the space can say it, its values come to the same configuration; a bias that the model lacks is none."""

    def canonical(lora: LoraConfiguration) -> LoraConfiguration:
        return lora.model_copy(update={"bias": "none"})

    lora = LoraConfiguration(**BASE)
    found = expressed(lora, LoraSpace.model_validate(space), DEFAULTS, canonical)
    assert (found is not None) == inside


def observation(number: int, rank: int, *, repeatable: bool = True) -> Observation:
    lora = LoraConfiguration(**{**BASE, "rank": rank, "alpha": float(rank)})
    session = ToySession(lora)
    session.train(100)
    report = Report(100, dict(session.evaluate()), Outcome.COMPLETE)
    params = {"rank": rank, "alpha_ratio": 1, "modules": "attention", "quantization": "nf4", "dropout": 0.0,
              "bias": "none", "learning_rate": 1e-3}  # fmt: skip
    return Observation(f"first trial {number}", lora, params, report, repeatable)


def small_search(**changes: Any) -> SearchFile:
    return parse_search({"name": "s", "model": "m", "data": {"path": "d"}, "space": {**SPACE, **changes}})


@pytest.mark.parametrize(("repeatable", "ranks"), [(True, [16]), (False, [2, 4, 8, 16])])
def test_what_was_trained_with_the_same_seed_is_not_run_again(
    tmp_path: Path, repeatable: bool, ranks: list[int]
) -> None:
    """It would give the same numbers, also for a driver that goes on; what had another seed may run."""
    search = small_search(modules="attention", quantization="nf4", learning_rate=1e-3, alpha={"ratio": 1})
    first = StudyLedger(tmp_path / "study.db", search, create=True)
    first.keep_observations([observation(i, rank, repeatable=repeatable) for i, rank in enumerate((2, 4, 8))])
    ran = []
    study = StudyLedger(tmp_path / "study.db", search, create=False)
    while (asked := study.ask()) is not None:
        ran.append(asked[1].rank)
        study.tell(asked[0], Report(100, observation(0, asked[1].rank).report.measurements, Outcome.COMPLETE))
    assert sorted(ran) == ranks
    assert len(read_study(tmp_path / "study.db").counted) == len(ranks)


@pytest.mark.parametrize("there", [0, 1, 3])
def test_a_driver_that_dies_in_between_adds_each_result_once(tmp_path: Path, there: int) -> None:
    """The next driver adds those that are missing."""
    path = tmp_path / "study.db"
    seen = [observation(i, rank) for i, rank in enumerate((2, 4, 8))]
    first = StudyLedger(path, small_search(), create=True)
    if there:
        first.keep_observations(seen[:there])
    second = StudyLedger(path, small_search(), create=False)
    second.keep_observations(seen)
    table = read_study(path)
    assert [trial.imported_from for trial in table.imported] == [one.source for one in seen]
    assert table.trials == ()
    assert table.warmed
    assert StudyLedger(path, small_search(), create=False).recorded == 0


def test_a_shipped_point_that_is_known_is_not_tried(tmp_path: Path) -> None:
    """The sampler has its result already; the user's own point runs all the same."""
    seen = observation(0, 2)
    for own, first in ((False, False), (True, True)):
        study = StudyLedger(tmp_path / f"{own}.db", small_search(), create=True)
        study.keep_observations([seen])
        study.keep_starts([Start("point", seen.params, own=own)])
        asked = study.ask()
        assert asked is not None
        assert (asked[1] == seen.lora) == first
