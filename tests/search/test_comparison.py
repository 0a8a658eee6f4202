"""The front beside the recommended default and full fine-tuning: what is trained, and what the differences are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import FixedTrial
from replicated import around, record, study, trained
from support import TINY_LLAMA

from lorafront.search.compare import baselines_of, compare_search
from lorafront.search.comparison import Compared, compared, configurations, following, middle_of
from lorafront.search.confirm import confirmation_of, replicates
from lorafront.search.confirmation import Confirmation, confirmation
from lorafront.search.confirmation_report import as_json, lines
from lorafront.search.export import export_front
from lorafront.search.paths import RootPaths
from lorafront.search.run import run_search
from lorafront.search.search_file import Budget, Confirm, FullTuning, SearchFile, parse_search
from lorafront.search.study_table import StudyTable, read_study
from lorafront.search.warm_start import value_of
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.lora import LoraConfiguration, LoraSpace
from lorafront.trainables.data import SEARCHED

FULL = FullTuning(learning_rate=5e-4, quantization="bf16")
BOTH = Confirm(seeds=3, baselines=["default", "full"], full_tuning=FULL)
TABLE = study((10.0, 8.0), (20.0, 4.0))
Measure = Callable[[LoraConfiguration], dict[str, float] | None]


def apart(perplexity: float, vram: float, own_rows: float | None = None) -> dict[str, float]:
    return {
        "perplexity": perplexity, "peak_vram_gb": vram, f"eval_{SEARCHED}_loss": own_rows or math.log(perplexity),
    }  # fmt: skip


def beside(confirm: Confirm, table: StudyTable = TABLE) -> SearchFile:
    """The search of the baselines."""
    return baselines_of(
        table, StudyTable(replicates(table, confirm, apart=False), (), {}, (), data={"rungs": [64]}), confirm
    )


def all_rounds(measure: Measure, confirm: Confirm = BOTH) -> tuple[StudyTable, list[list[LoraConfiguration]]]:
    """Baselines, each replicate measured so; with what was trained in each round."""
    search = beside(confirm)
    own, rounds = StudyTable(search, (), {}, ()), []
    while more := following(TABLE, own, confirm):
        there = len(own.trials)
        added = [record(there + index, one, measure(one)) for index, one in enumerate(more)]
        own = replace(own, trials=(*own.trials, *added))
        rounds.append(more)
        assert len(rounds) < 9, "there is no end to it"
    return own, rounds


def judged(measure: Measure) -> dict[str, Compared]:
    scatter = around(TABLE, 0.01)
    own, _ = trained(TABLE, scatter)
    found = confirmation(TABLE, own, 3)
    assert found is not None
    baselines, _ = all_rounds(measure)
    return {one.name: one for one in compared(TABLE, found, own, baselines)}


def test_full_fine_tuning_gets_the_rate_that_did_best_on_the_rows_of_the_search() -> None:
    """Three rates with one seed, then the best of them with the others; what the held-out rows say chooses nothing."""
    rates = [one.learning_rate for one in configurations(TABLE, "full", FULL)]
    low, middle, high = rates[3:6]

    def measure(one: LoraConfiguration) -> dict[str, float]:
        own_rows = 1.0 if one.learning_rate == middle else 2.0
        return apart(9.0 - rates.index(one.learning_rate), 20.0, own_rows) if one.method == "full" else apart(30.0, 4.0)

    own, rounds = all_rounds(measure)
    assert [(one.learning_rate, one.seed) for one in rounds[0] if one.method == "full"] == [
        (low, 1), (middle, 1), (high, 1)
    ]  # fmt: skip
    assert [(one.learning_rate, one.seed) for one in rounds[1]] == [(middle, 2), (middle, 3)]
    assert sorted(one.seed or 0 for one in rounds[0] if one.method == "lora") == [1, 2, 3]
    assert rates == sorted(rates)
    assert middle == pytest.approx(middle_of(TABLE))
    assert middle == pytest.approx(TABLE.complete[0].lora.learning_rate / 10)
    assert judged(measure)["full"].lora.learning_rate == middle
    assert len(own.trials) == 8


@pytest.mark.parametrize("best", range(9))
def test_rates_are_tried_until_one_on_both_sides_is_worse(best: int) -> None:
    """As far as the ladder reaches: a baseline whose rate was cut off would be no baseline."""
    rates = [one.learning_rate for one in configurations(TABLE, "full", FULL)]
    own, _ = all_rounds(
        lambda one: apart(9.0 + abs(rates.index(one.learning_rate) - best), 20.0) if one.method == "full" else None
    )
    tried = {trial.lora.learning_rate: trial.lora.seed for trial in own.trials if trial.lora.method == "full"}
    assert set(rates[max(0, best - 1) : best + 2]) <= set(tried)
    assert [rate for rate, seed in tried.items() if seed == 3] == [rates[best]]


def test_differences_are_paired_by_seed() -> None:
    """A baseline that is worse by a tenth at every seed is worse by a tenth, however much the seeds scatter."""
    scatter = around(TABLE, 0.02)
    own, _ = trained(TABLE, scatter)
    found = confirmation(TABLE, own, 3)
    assert found is not None
    of_member = {trial.lora.seed: trial for trial in own.trials if trial.lora.rank == 1}

    def measure(one: LoraConfiguration) -> dict[str, float]:
        same = of_member.get(one.seed)
        return apart(1.1 * same.measurements["perplexity"] if same else 1.0, 7.0)

    seeds = Confirm(seeds=len(of_member), baselines=["default"])
    (default,) = compared(TABLE, found, own, all_rounds(measure, seeds)[0])
    more, half = default.differences[0]["perplexity"]
    assert abs(more - -math.log(1.1)) <= half + 1e-9
    memory, exactly = default.differences[0]["peak_vram_gb"]
    assert memory == pytest.approx(1.0)
    assert exactly == pytest.approx(0.0, abs=1e-9)


def test_a_baseline_that_never_ends_says_how_it_ended() -> None:
    """Full fine-tuning that runs out of memory, or diverges, is no reason to leave out the other one."""
    found = judged(lambda one: None if one.method == "full" else apart(30.0, 4.0))
    assert found["full"].entry is None
    assert found["full"].ended == ("diverged: the loss was no longer a finite number",)
    assert found["default"].entry is not None
    assert found["default"].entry.seeds == 3


def test_what_is_still_to_come_is_said() -> None:
    """A comparison that was stopped says how much is missing, and the command that goes on with it."""
    own, _ = trained(TABLE, around(TABLE, 0.01))
    found = confirmation(TABLE, own, 3)
    assert found is not None
    baselines, _ = all_rounds(lambda _: apart(30.0, 4.0))
    half = replace(baselines, trials=tuple(t for t in baselines.trials if t.lora.method == "lora")[:1])
    both = compared(TABLE, found, own, half)
    assert [one.waiting for one in both] == [2, 3]
    told = " ".join(lines(replace(found, compared=both)))
    assert "full fine-tuning: 3 trainings are still to come: lorafront compare n --baseline full" in told
    assert [one.waiting for one in compared(TABLE, found, own, baselines)] == [0, 0]

    hours = replace(half, search=half.search.model_copy(update={"budget": Budget(trials=4, hours=0.5)}), seconds=1900)
    told = " ".join(lines(replace(found, compared=compared(TABLE, found, own, hours))))
    assert "lorafront compare n --baseline full --hours 1" in told


def shown(found: Confirmation, baselines: dict[str, Compared]) -> Confirmation:
    return replace(found, compared=tuple(baselines.values()))


def test_the_confirmation_tells_what_the_front_has_more() -> None:
    """A sentence for each member and baseline, and the same in JSON."""
    found = confirmation(TABLE, trained(TABLE, around(TABLE, 0.01))[0], 3)
    assert found is not None
    full = shown(found, judged(lambda one: apart(9.0 if one.method == "full" else 30.0, 4.0)))
    told = "\n".join(lines(full))
    assert "trial 0 against the recommended default: perplexity -6" in told
    assert "trial 0 against full fine-tuning: perplexity +1" in told
    assert [one["baseline"] for one in json.loads(json.dumps(as_json(full)))["compared"]] == ["default", "full"]


def test_the_space_of_the_baselines_has_all_of_them() -> None:
    """Whatever is planned can be asked for, and full fine-tuning reads back as what it is, without an adapter."""
    search = beside(BOTH)
    assert search == parse_search(search.model_dump(mode="json"))
    assert (search.name, search.confirms, search.data.evaluate_on) == ("n-compare", "n", "held_out")
    for name in ("default", "full"):
        for one in configurations(TABLE, name, FULL):
            assert LoraConfiguration.model_validate(one.model_dump(mode="json")) == one
            drawn = {name: value_of(one.with_seed(1), name, of) for name, of in search.space.parameters().items()}
            assert search.space.ask(FixedTrial(drawn), search.training.defaults()) == one.with_seed(1)
    assert "rank" not in configurations(TABLE, "full", FULL)[0].model_dump()
    with pytest.raises(InvalidInput, match=r"space\.method is what"):
        parse_search({**search.model_dump(mode="json"), "confirms": None})


def test_baselines_train_as_long_as_the_front_and_with_what_the_search_has_fixed() -> None:
    """A batch that the space fixes is theirs too, and so is the number of rows."""
    fixed = TABLE.search.model_copy(update={"space": LoraSpace(batch_size=16, warmup=[0.0, 0.1])})
    table = replace(TABLE, search=fixed)
    search = beside(BOTH, table)
    assert (search.training.rows, search.training.epochs) == (64, None)
    assert (search.training.batch_size, search.training.warmup) == (16, fixed.training.warmup)
    assert {one.batch_size for name in ("default", "full") for one in configurations(table, name, FULL)} == {16}


def test_a_front_that_moves_does_not_move_full_fine_tuning() -> None:
    """What was trained stays what is told: its rates are those that the comparison began with."""
    own, _ = all_rounds(lambda _: apart(30.0, 4.0))
    trials = tuple(replace(t, lora=t.lora.model_copy(update={"learning_rate": 1e-4})) for t in TABLE.trials)
    assert middle_of(replace(TABLE, trials=trials)) != middle_of(TABLE)
    assert following(replace(TABLE, trials=trials), own, BOTH) == []


@pytest.mark.slow
def test_a_real_front_is_compared(ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """Full fine-tuning trains every weight with more memory; a second call trains nothing again."""
    root = RootPaths(tmp_path)
    search = {
        "name": "real", "model": str(TINY_LLAMA),
        "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 16},
        "space": {"rank": [2, 16], "modules": "attention", "quantization": "bf16", "bias": "none",
                  "learning_rate": 5e-3},
        "training": {"rows": 32, "rungs": 1, "batch_size": 4}, "budget": {"trials": 2}, "early_stopping": "off",
    }  # fmt: skip
    run_search(parse_search(search), root)
    found = compare_search("real", root, ["default", "full"], seeds=2)
    default, full = found.compared
    assert default.entry is not None
    assert full.entry is not None
    assert full.entry.seeds == default.entry.seeds == 2
    own = read_study(root.search("real-compare").study_db)
    whole = next(trial for trial in own.complete if trial.lora.method == "full")
    assert whole.measurements["trainable_percent"] == 100
    assert (full.entry.peak or 0) > max(entry.peak or 0 for entry in found.entries)
    assert (
        compare_search("real", root, ["full"])
        == found
        == confirmation_of(read_study(root.search("real").study_db), root)
    )
    assert len(read_study(root.search("real-compare").study_db).trials) == len(own.trials)
    with pytest.raises(InvalidInput, match="no adapter"):
        export_front(root.search("real-compare"), tmp_path / "out", [whole.number])
