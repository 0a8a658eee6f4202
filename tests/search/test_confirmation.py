"""The front trained again with other seeds: what is trained next, and what its replicates say."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replicated import Measure, around, record, study, trained
from support import TINY_LLAMA, lora

from lorafront.search.confirm import confirm_search, confirmation_of, replicates
from lorafront.search.confirmation import (
    Confirmation,
    as_confirmed,
    confirmation,
    following,
    replicated,
    seeds_of,
)
from lorafront.search.confirmation_report import as_json, chance, confirmation_table, lines
from lorafront.search.front import front_of
from lorafront.search.paths import RootPaths
from lorafront.search.recommendation import lines as recommendation_lines
from lorafront.search.recommendation import recommend
from lorafront.search.report import as_html, as_markdown
from lorafront.search.run import run_search
from lorafront.search.search_file import Confirm, parse_search
from lorafront.search.start_points import Start
from lorafront.search.study_table import StudyTable, read_study
from lorafront.spaces.errors import InvalidInput, NoFront
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.start_points import StartPoint
from lorafront.trainables.data import SEARCHED, load
from lorafront.trainables.models import load_tokenizer


def confirmed(table: StudyTable, measure: Measure, seeds: int = 3) -> Confirmation:
    found = confirmation(table, trained(table, measure, seeds)[0], seeds)
    assert found is not None
    return found


def test_members_of_the_front_get_two_seeds_each_and_no_more_where_all_is_clear() -> None:
    """What stands far from all others is on the front whatever the seed; what lies behind is not trained again."""
    table = study((10.0, 8.0), (20.0, 4.0), (40.0, 2.0), (60.0, 3.0))
    own, rounds = trained(table, around(table, 0.001), seeds=5)
    assert rounds == [6]
    assert [(t.lora.rank - 1, t.lora.seed) for t in own.trials] == [(n, s) for n in (0, 1, 2) for s in (1, 2)]
    found = confirmed(table, around(table, 0.001))
    assert [(e.trial.number, e.seeds, chance(e.probability)) for e in found.kept] == [
        (n, 2, "> 99 %") for n in (0, 1, 2)
    ]
    assert not found.needless
    assert not found.beaten
    assert found.waiting == 0


def test_a_trial_that_could_overtake_a_member_is_trained_too_and_may_take_its_place() -> None:
    """It was unlucky with its seed: on others it is better than the member that had been lucky."""
    table = study((10.0, 8.0), (20.0, 4.0), (20.4, 4.01), (90.0, 1.0))
    scatter = around(table, 0.03)

    def measure(one: LoraConfiguration) -> dict[str, float]:
        known = scatter(one) or {}
        return {**known, "perplexity": 18.0 + 0.01 * (one.seed or 0)} if one.rank == 3 else known

    assert 2 not in {trial.number for trial in front_of(table)}
    found = confirmed(table, measure)
    entry = found.of(2)
    assert entry is not None
    assert entry.role == "near the front"
    assert entry in found.kept
    assert found.of(1) not in found.kept
    assert "new" in drawn(found)


def test_further_seeds_go_where_it_is_unsure_who_is_on_the_front() -> None:
    """Two that nobody can tell apart by two seeds get more; one that is far from them does not."""
    table = study((10.0, 8.0), (30.0, 4.0), (30.3, 3.0), (30.1, 3.5))
    own, rounds = trained(table, around(table, 0.05), seeds=6)
    counts = {n: sum(t.lora.rank - 1 == n for t in own.trials) for n in range(4)}
    assert counts[0] == 2
    assert max(counts.values()) > 2
    assert max(counts.values()) <= 6
    assert len(rounds) > 1


def test_what_cannot_be_told_apart_is_one_choice_the_one_that_costs_less() -> None:
    """Within the noise over seeds the dearer one is needless; within a trifle of memory the worse one is."""
    table = study((30.0, 8.0), (30.1, 4.0), (60.0, 3.99))
    found = confirmed(table, around(table, 0.02))
    assert [entry.trial.number for entry in found.kept] == [1]
    assert found.kept[0].covers == (0, 2)
    assert {entry.trial.number for entry in found.needless} == {0, 2}


def test_the_bias_of_the_search_is_told_by_its_parts() -> None:
    """Rows that are harder by a tenth of a nat, and a front that was luckier than its seeds are on average."""
    table = study((10.0, 8.0), (20.0, 4.0), (40.0, 2.0))
    found = confirmed(table, around(table, 0.0005, shift=0.1))
    assert found.bias.total == pytest.approx(0.1, abs=0.002)
    assert found.bias.rows == pytest.approx(0.1, abs=1e-6)
    assert found.bias.luck == pytest.approx(0.0, abs=0.002)
    told = "\n".join(lines(found))
    assert "11 % worse" in told
    assert "by other rows" in told


def test_the_users_recipe_is_trained_again_too_and_every_member_is_compared_with_it_at_the_same_seeds() -> None:
    """Its difference is far surer than the means are, where a seed moves all of them alike."""
    table = study((10.0, 8.0), (20.0, 4.0), (40.0, 5.0))
    own = table.trials[2]
    search = table.search.model_copy(update={"baseline": StartPoint(rank=3)})
    table = replace(table, search=search, starts=(Start("baseline", {}, own=True, fingerprint=own.lora.fingerprint),))
    known = {trial.lora.rank: trial.measurements for trial in table.trials}

    def measure(one: LoraConfiguration) -> dict[str, float]:
        measured = known[one.rank]
        moved = 1.2 if one.seed == 1 else 1.0
        return {**measured, "perplexity": measured["perplexity"] * moved * (1 + 1e-4 * one.rank * (one.seed or 0))}

    found = confirmed(table, measure)
    entry, recipe = found.of(1), found.of(2)
    assert recipe is not None
    assert (recipe.role, recipe.seeds, recipe.to_baseline) == ("baseline", 2, None)
    assert entry is not None
    assert entry.to_baseline is not None
    more, half = entry.to_baseline
    assert np.exp(more) == pytest.approx(0.5, abs=0.001)
    assert half < 0.01
    low, high = entry.intervals["perplexity"]
    assert high / low > 1.1
    told = "\n".join(lines(found))
    assert "trial 1 against the baseline, trial 2: perplexity -50" in told
    assert "baseline" in drawn(found)


def test_what_had_a_seed_more_is_compared_at_the_seeds_of_all() -> None:
    """A seed that is bad for everybody does not count against those that alone were trained with it."""
    table = study((10.0, 4.0), (9.5, 8.0), (9.45, 9.0))
    known = {1: (10.0, 10.1), 2: (9.5, 9.6, 11.8), 3: (9.45, 9.5, 11.7)}
    own = StudyTable(replicates(table, Confirm(seeds=3), apart=False), (), {}, ())
    measured = [
        record(10 * rank + seed, lora(rank=rank).with_seed(seed), {"perplexity": value, "peak_vram_gb": vram})
        for (rank, values), vram in zip(known.items(), (4.0, 8.0, 9.0), strict=True)
        for seed, value in enumerate(values, start=1)
    ]
    found = confirmation(table, replace(own, trials=tuple(measured)), 3)
    assert found is not None
    assert [entry.trial.number for entry in found.entries] == [2, 1, 0]
    best = recommend(as_confirmed(found), 2**40)
    assert best.trial.number != 0
    assert best.better is None


def test_of_one_replicate_each_nothing_is_said_and_nothing_more_is_planned_while_any_runs() -> None:
    """No noise is known yet, so nobody has a chance of anything; what runs may still change what comes next."""
    table = study((10.0, 8.0), (20.0, 4.0), (20.1, 4.1))
    own = StudyTable(replicates(table, Confirm(seeds=3), apart=False), (), {}, ())
    first = [record(n, t.lora.with_seed(1), dict(t.measurements)) for n, t in enumerate(table.trials[:2])]
    own = replace(own, trials=tuple(first))
    assert confirmation(table, own, 3) is None
    running = [
        replace(record(2 + n, t.lora.with_seed(2), {}), state="RUNNING", result=None)
        for n, t in enumerate(table.trials[:2])
    ]
    assert following(table, replace(own, trials=(*own.trials, *running)), 3) == []


def test_a_peak_that_is_no_objective_is_the_one_that_replicates_measured() -> None:
    """What was only predicted before is not called confirmed with its old number."""
    search = parse_search(
        {"name": "n", "model": "m", "data": {"path": "d"}, "objectives": ["perplexity", "adapter_mb"]}
    )
    measured = {"perplexity": 10.0, "adapter_mb": 3.0, "peak_vram_gb": 5.0, "peak_vram_source": "predicted"}
    table = StudyTable(search, (record(0, lora(rank=2), measured),), {}, ())
    found = confirmed(table, lambda one: {**measured, "perplexity": 10.0 + (one.seed or 0), "peak_vram_gb": 9.0})
    chosen = as_confirmed(found).trials[0].measurements
    assert (chosen["peak_vram_gb"], chosen["peak_vram_source"]) == (9.0, "confirmed")


def test_a_replicate_that_diverges_is_counted_and_not_tried_again() -> None:
    """Its configuration says with how many of its seeds that happened."""
    table = study((10.0, 8.0), (20.0, 4.0))
    scatter = around(table, 0.01)
    own, _ = trained(table, lambda one: None if (one.rank, one.seed) == (1, 2) else scatter(one), seeds=3)
    found = confirmation(table, own, 3)
    assert found is not None
    entry = found.of(0)
    assert entry is not None
    assert entry.lost == 1
    assert f"{entry.seeds} of {entry.seeds + 1}" in drawn(found)


def test_where_all_diverge_there_is_nothing_to_say_and_nothing_more_to_train() -> None:
    """A front that no other seed reaches."""
    table = study((10.0, 8.0), (20.0, 4.0))
    own, rounds = trained(table, lambda _: None)
    assert rounds == [4]
    assert confirmation(table, own, 3) is None


def test_a_limit_that_only_a_lucky_seed_kept_takes_a_member_off_the_front() -> None:
    """Whoever breaks it with other seeds is beaten, whatever its quality."""
    table = study((10.0, 7.9), (20.0, 4.0), limit="<= 8")
    more = around(table, 0.001)
    found = confirmed(table, lambda one: {**(more(one) or {}), **({"peak_vram_gb": 8.2} if one.rank == 1 else {})})
    assert [entry.trial.number for entry in found.kept] == [1]
    assert [entry.trial.number for entry in found.beaten] == [0]


@settings(deadline=None, max_examples=40)
@given(
    points=st.lists(st.tuples(st.floats(2, 60), st.floats(1, 20)), min_size=1, max_size=7, unique=True),
    spread=st.floats(0.0, 0.2),
    seeds=st.integers(2, 5),
)
def test_every_member_is_judged_once_and_no_seed_is_tried_twice(
    points: list[tuple[float, float]], spread: float, seeds: int
) -> None:
    """Whatever the search found: rounds end, replicates differ, and what is kept makes all needless ones needless."""
    table = study(*points)
    own, _ = trained(table, around(table, spread), seeds)
    tried = [(t.lora.rank, t.lora.seed) for t in own.trials]
    assert len(set(tried)) == len(tried)
    assert {seed for _, seed in tried} <= set(seeds_of(table, seeds))
    found = confirmation(table, own, seeds)
    assert found is not None
    numbers = [entry.trial.number for entry in found.entries]
    assert sorted(numbers) == sorted(member.trial.number for member in replicated(table, own))
    assert {trial.number for trial in front_of(table)} <= set(numbers)
    assert sorted(n for entry in found.kept for n in entry.covers) == sorted(e.trial.number for e in found.needless)
    assert found.kept
    assert json.loads(json.dumps(as_json(found)))["waiting"] == 0


def test_a_search_of_replicates_is_the_search_on_rows_that_it_never_saw() -> None:
    """Same model, length and space; stock PEFT alone, no early end, and the seeds after the search's own."""
    table = study((10.0, 8.0), (20.0, 4.0))
    search = replicates(table, Confirm(seeds=4, hours=2), held_out="test.jsonl", apart=True)
    assert search == parse_search(search.model_dump(mode="json"))
    assert (search.name, search.confirms, search.engine, search.early_stopping) == ("n-confirm", "n", "process", "off")
    assert (search.data.evaluate_on, search.data.test_path) == ("held_out", "test.jsonl")
    assert (search.budget.trials, search.budget.hours, search.resources.gpus_per_trial) == (4, 2, 1)
    assert search.space.model_copy(update={"seed": None}) == table.search.space
    assert seeds_of(table, 2) == [1, 2]


def drawn(found: Confirmation) -> str:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(confirmation_table(found))
    return console.export_text()


def test_the_table_fits_80_columns_and_names_what_is_needless() -> None:
    """With its interval, its chance, and what takes its place."""
    table = study((30.0, 8.0), (30.1, 4.0), (60.0, 2.0), (90.0, 2.5))
    text = drawn(confirmed(table, around(table, 0.02)))
    assert max(map(len, text.splitlines())) <= 80
    assert "as good: 1" in text
    assert "±" in text


@pytest.fixture(scope="module")
def real(ray_session: None, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RootPaths:
    """A search that was really trained."""
    root = RootPaths(tmp_path_factory.mktemp("confirmed"))
    search = {
        "name": "real", "model": str(TINY_LLAMA),
        "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 16},
        "space": {"rank": [2, 16], "alpha": {"ratio": 1}, "modules": ["query+value", "attention"],
                  "quantization": "bf16", "bias": "none", "dropout": 0.0, "learning_rate": 5e-3},
        "training": {"rows": 32, "rungs": 1, "batch_size": 4}, "budget": {"trials": 4}, "early_stopping": "off",
    }  # fmt: skip
    run_search(parse_search(search), root)
    return root


@pytest.mark.slow
def test_a_real_front_is_confirmed_beside_its_search(real: RootPaths) -> None:
    """Other seeds, the same training rows, rows to evaluate on that the search never saw, measured peaks; once."""
    before = read_study(real.search("real").study_db)
    found = confirm_search("real", real, seeds=2)
    table, own = read_study(real.search("real").study_db), read_study(real.search("real-confirm").study_db)
    assert table == before
    assert all(trial.state == "COMPLETE" for trial in own.trials)
    assert {trial.lora.seed for trial in own.trials} == {1, 2}
    assert {trial.measurements["peak_vram_source"] for trial in own.trials} == {"cpu_live_storages"}
    ours, theirs = (load(real.tokens / one.data["tokens"]) for one in (own, table))
    assert (ours.train.ids == theirs.train.ids).all()
    assert (ours.also[SEARCHED].ids == theirs.evaluation.ids).all()
    seen = {tuple(rows.row(i)[0]) for rows in (theirs.train, theirs.evaluation) for i in range(len(rows))}
    assert not seen & {tuple(ours.evaluation.row(i)[0]) for i in range(len(ours.evaluation))}
    assert {trial.number for trial in front_of(table)} <= {entry.trial.number for entry in found.entries}
    by_seed = {(t.lora.with_seed(None).fingerprint, t.lora.seed): t.measurements["perplexity"] for t in own.trials}
    assert len(set(by_seed.values())) == len(by_seed)
    again = confirm_search("real", real)
    assert len(read_study(real.search("real-confirm").study_db).trials) == len(own.trials)
    assert again == found == confirmation_of(table, real)


@pytest.mark.slow
def test_more_seeds_later_go_on_from_those_that_there_are(real: RootPaths, text_file: Path) -> None:
    """What was trained stays; other held-out rows would be another confirmation."""
    confirm_search("real", real, seeds=2)
    own = read_study(real.search("real-confirm").study_db)
    confirm_search("real", real, seeds=4)
    more = read_study(real.search("real-confirm").study_db)
    assert more.trials[: len(own.trials)] == own.trials
    assert more.search.confirm == Confirm(seeds=4)
    with pytest.raises(InvalidInput, match="other held-out rows"):
        confirm_search("real", real, held_out=str(text_file))
    with pytest.raises(InvalidInput, match="is itself a confirmation"):
        confirm_search("real-confirm", real)


def test_data_that_leaves_nothing_unseen_is_refused_with_what_to_do(ray_session: None, tmp_path: Path) -> None:
    """Every row was trained on or evaluated on; nothing is left behind, and a file of other rows will do."""
    rows = [json.dumps({"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."}) for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    search = parse_search({
        "name": "all", "model": str(TINY_LLAMA),
        "data": {"path": str(tmp_path / "rows.jsonl"), "format": "question_answer", "eval_rows": 8, "max_length": 64},
        "space": {"rank": [2, 4], "quantization": "bf16", "modules": "attention", "bias": "none"},
        "training": {"rows": 16, "rungs": 1, "batch_size": 4}, "budget": {"trials": 2},
    })  # fmt: skip
    root = RootPaths(tmp_path / "root")
    run_search(search, root, engine="toy")
    with pytest.raises(InvalidInput, match=r"data\.test_path: 0 rows are left that the search has not seen"):
        confirm_search("all", root, engine="toy")
    assert not root.search("all-confirm").folder.exists()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(row.replace("What", "How much") for row in rows), encoding="utf-8")
    found = confirm_search("all", root, held_out=str(other), engine="toy")
    assert found.kept


@pytest.mark.slow
def test_a_search_without_a_front_cannot_be_confirmed(ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """Exit code 4, as wherever there is no front."""
    search = parse_search({
        "name": "none", "model": str(TINY_LLAMA), "data": {"path": str(text_file), "max_length": 32},
        "constraints": {"perplexity": "<= 1"}, "budget": {"trials": 1},
        "space": {"rank": 2, "quantization": "bf16", "modules": "attention", "bias": "none"},
    })  # fmt: skip
    root = RootPaths(tmp_path / "root")
    run_search(search, root, engine="toy")
    with pytest.raises(NoFront, match="to confirm"):
        confirm_search("none", root, engine="toy")


@pytest.mark.slow
def test_a_recommendation_speaks_by_the_replicates_and_how_sure_they_are(real: RootPaths) -> None:
    """What it takes is worth choosing, its quality is the mean over seeds, and the report says the same."""
    found = confirm_search("real", real)
    chosen = recommend(as_confirmed(found))
    entry = found.of(chosen.trial.number)
    assert entry in found.kept
    assert entry is not None
    assert chosen.trial.measurements["perplexity"] == entry.values["perplexity"]
    told = " ".join(recommendation_lines(chosen, found))
    assert f"over {entry.seeds} seeds: perplexity" in told
    assert "may be its noise" not in told
    text = as_markdown(found.table, found)
    assert "## With other seeds" in text
    for one in found.entries:
        assert f"| {one.trial.number} | {one.trial.lora.label} | {one.seeds} |" in text
    assert 'id="confirmed-table"' in as_html(found.table, found)
    assert 'id="confirmed-table"' not in as_html(found.table)


@pytest.mark.slow
def test_a_test_split_is_held_out_and_nobody_else_looks_at_it(ray_session: None, tmp_path: Path) -> None:
    """A search does not mind what is wrong with it; `confirm` does. Ratios that divide badly harm nobody."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, first in (("train", 0), ("validation", 100), ("test", 200)):
        rows = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(first, first + 16)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    good = (folder / "test.jsonl").read_text(encoding="utf-8")
    (folder / "test.jsonl").write_text('{"question": "What?", "answer": null}', encoding="utf-8")
    search = parse_search({
        "name": "splits", "model": str(TINY_LLAMA),
        "data": {"path": str(folder), "format": "question_answer", "max_length": 64},
        "space": {"rank": [3, 6], "alpha": {"ratio": [0.1, 0.5]}, "quantization": "bf16", "modules": "attention",
                  "bias": "none"},
        "training": {"rows": 16, "rungs": 1, "batch_size": 4}, "budget": {"trials": 3},
    })  # fmt: skip
    root = RootPaths(tmp_path / "root")
    run_search(search, root, engine="toy")
    with pytest.raises(InvalidInput, match="test split"):
        confirm_search("splits", root, engine="toy")
    (folder / "test.jsonl").write_text(good, encoding="utf-8")
    assert confirm_search("splits", root, seeds=2, engine="toy").kept
    own = read_study(root.search("splits-confirm").study_db)
    rows = load(root.tokens / own.data["tokens"]).evaluation
    told = load_tokenizer(search.model).decode([int(token) for i in range(len(rows)) for token in rows.row(i)[0]])
    assert "215" in told
    assert "115" not in told


def test_a_front_that_turns_over_with_twice_the_rows_is_told() -> None:
    """What wins a short training may lose a longer one: who stays, who leaves, and who comes, by trial."""
    table = replace(study((10.0, 8.0), (20.0, 4.0), (20.4, 3.9)), data={"rungs": [8, 16]})
    longer = replace(table, data={"rungs": [32]})
    factors = {1: 0.9, 2: 0.4, 3: 0.9}

    def measure(one: LoraConfiguration) -> dict[str, float]:
        measured = around(table, 0.001)(one) or {}
        return {**measured, "perplexity": measured["perplexity"] * factors[one.rank]}

    own, _ = trained(table, measure)
    found = confirmation(table, replace(own, data=longer.data), 3)
    assert found is not None
    assert found.longer
    told = lines(found)
    assert "still on the front: trials 1, 2" in told
    assert "no longer on it: trial 0" in told
    assert "with other seeds and twice the rows" in " ".join(drawn(found).split())
    search = replicates(table, Confirm(seeds=2), apart=False, longer=True)
    assert (search.name, search.training.rows, search.training.epochs) == ("n-horizon", 32, None)
    again = confirmation(table, own, 3)
    assert again is not None
    assert not again.longer
