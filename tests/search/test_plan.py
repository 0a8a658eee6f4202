"""What fits where: largest batches and lengths, shares of a space, and the same numbers in every form."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support import TINY_LLAMA

from lorafront.search import plan_report
from lorafront.search.correction import Correction
from lorafront.search.gpu_memory import CONTEXT
from lorafront.search.known_limits import configurations
from lorafront.search.paths import RootPaths
from lorafront.search.placement import WHOLE, Devices, Placement
from lorafront.search.plan import LARGEST_BATCH, OVER, Plan, largest, limits, parse_gpus, plan, room
from lorafront.search.plan_hours import estimate
from lorafront.search.plan_plot import plot_plan
from lorafront.search.plan_question import Answer, Question, answer
from lorafront.search.plan_subject import Subject, of_model
from lorafront.search.preflight import check
from lorafront.search.prepared import Prepared
from lorafront.search.search_file import read_search_file
from lorafront.search.study import StudyLedger
from lorafront.spaces.errors import InvalidInput, NotTraced
from lorafront.spaces.sizes import GIB, MIB
from lorafront.trainables.memory_model import PARTS, Shapes
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

GPUS = parse_gpus("4GB,2GB,800MB")
SPACE = {
    "rank": [4, 64], "alpha": {"ratio": [1, 2]}, "modules": ["query", "attention"], "quantization": ["nf4", "bf16"],
    "bias": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> RootPaths:
    """Shared, so that each kind of step is traced once."""
    return RootPaths(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory, root: RootPaths) -> Subject:
    """A GPT-2 of two layers: nothing but a config."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 2, "n_positions": 256}))
    return of_model(str(folder), batch=4, length=None, checkpointing=False, traced=root.traced)


@pytest.fixture(scope="module")
def small(subject: Subject) -> Plan:
    """Two of its kinds."""
    return plan(_only(subject, modules="attention", quantization="nf4", also="bf16"), GPUS)


def _only(subject: Subject, **chosen: Any) -> Subject:
    """The configurations with these values; `also` is a second quantization."""
    quantizations = {chosen.pop("quantization", None), chosen.pop("also", None)} - {None}
    kept = [
        lora for lora in subject.configurations
        if chosen.items() <= lora.model_dump().items() and (not quantizations or lora.quantization in quantizations)
    ]  # fmt: skip
    return replace(subject, configurations=tuple(kept))


def test_gpus_are_sorted_sizes() -> None:
    """Each once, from small to large, with the context that every process takes."""
    assert [(gpu.name, gpu.bytes, gpu.context) for gpu in parse_gpus("24GB, 8,8GB,700MB")] == [
        ("700MB", 700 * MIB, CONTEXT),
        ("8GB", 8 * GIB, CONTEXT), ("24GB", 24 * GIB, CONTEXT),
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match=r"--gpu: must be a size such as 8GB or 500MB \(got 'big'\)"):
        parse_gpus("8GB,big")


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(0, 5000), st.integers(1, 5000))
def test_the_largest_that_fits(bound: int, most: int, known: int, guess: int) -> None:
    """Is found from any guess and any number that is known to fit, and is never more than is asked for."""
    assert largest(lambda number: number <= bound, most, min(known, bound, most), guess) == min(bound, most)


@given(st.integers(2 * GIB, 200 * GIB), st.integers(0, 200 * GIB))
def test_room_is_what_fits(size: int, predicted: int) -> None:
    """The line that a picture draws is where a search would not propose a trial any more."""
    gpu = Devices("one", size, context=CONTEXT)
    assert (not Placement([gpu]).too_large("nf4", predicted)) == (predicted <= room(gpu))


def test_one_more_row_or_token_does_not_fit(small: Plan) -> None:
    """The largest batch and the longest rows fit, and more of either does not, unless nobody asks for more."""
    subject = small.subject
    for row in small.rows:
        for gpu in small.gpus:

            def fits(rows: int, tokens: int, lora: Any = row.lora, gpu: Devices = gpu) -> bool:
                peak = subject.model.predict(lora, subject.training, Shapes(rows, tokens, padded=rows > 1)).total
                return peak <= room(gpu)

            found = limits(small, row)[gpu.name]
            assert found.batch == 0 or fits(found.batch, 256)
            assert found.batch == LARGEST_BATCH or not fits(found.batch + 1, 256)
            assert found.length == 0 or fits(4, found.length)
            assert found.length == subject.longest or not fits(4, found.length + 1)
            share = gpu.share(Correction().need(row.peak.total, gpu.context))
            assert row.at_once[gpu.name] == (WHOLE // share if share else int(row.peak.total <= room(gpu)))
    grown = limits(small, small.anchor)
    assert 0 < grown["2GB"].batch < grown["4GB"].batch


def test_a_model_alone_is_planned_over_the_default_space(subject: Subject) -> None:
    """GPT-2 fuses query, key and value, so groups that would split them are left out, and said."""
    assert [lora.rank for lora in subject.configurations[:5]] == [4, 8, 16, 32, 64]
    assert {lora.modules for lora in subject.configurations} == {"query+key+value", "attention", "attention+mlp"}
    assert len(subject.configurations) == 3 * 3 * 5
    assert sum(note.startswith("without modules ") for note in subject.notes) == 2


def test_the_recommended_default_is_found(small: Plan) -> None:
    """It is what batches and lengths are shown for; else what is nearest to it."""
    assert small.anchor.label == "r16 attention nf4"
    others = replace(small, rows=tuple(row for row in small.rows if row.lora.rank in {4, 64}))
    assert others.anchor.label in {"r4 attention nf4", "r64 attention nf4"}


def test_tiers_are_by_what_a_process_needs(small: Plan, root: RootPaths) -> None:
    """8 billion parameters and a small batch are in the second in 4 bits, and over the last in 16."""
    assert {row.tier for row in small.rows} == {"under 6 GB"}
    large = of_model("llama-3.1-8b", batch=2, length=64, checkpointing=False, traced=root.traced)
    rows = plan(_only(large, modules="query", rank=4, quantization="nf4", also="bf16"), GPUS).rows
    assert [(row.lora.quantization, row.tier) for row in rows] == [("nf4", "6-8 GB"), ("bf16", OVER)]


def test_a_large_model_is_its_weights(root: RootPaths) -> None:
    """14.8 billion parameters in NF4: half a byte each, a scale for 64, embeddings and head in 16 bits."""
    large = of_model("qwen2.5-14b", batch=2, length=16, checkpointing=False, traced=root.traced)
    (row,) = plan(_only(large, modules="query", quantization="nf4", rank=4), GPUS).rows
    embeddings = 2 * 152064 * 5120
    expected = (14.77e9 - embeddings) * (0.5 + 4 / 64) + 2 * embeddings
    assert row.peak.parts["base"] == pytest.approx(expected, rel=0.01)


def test_json_and_csv_agree_with_the_table(small: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    """Every form has the same rows with the same peaks; parts add up to the peak."""
    as_json = plan_report.as_json(Answer(small))
    lines = list(csv.DictReader(io.StringIO(plan_report.as_csv(small))))
    assert len(as_json["rows"]) == len(lines) == len(small.rows)
    for row, entry, line in zip(small.rows, as_json["rows"], lines, strict=True):
        assert float(line["peak_vram_gb"]) == entry["peak_vram_gb"] == row.peak.total / GIB
        assert sum(float(line[f"{part}_gb"]) for part in PARTS) == pytest.approx(entry["peak_vram_gb"])
        assert int(line["batch_2GB"]) == entry["gpus"]["2GB"]["batch"] == limits(small, row)["2GB"].batch
    console = Console(width=80)
    for table in plan_report.tables(small):
        console.print(table)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for row in small.rows:
        assert f"{row.peak.total / 2**20:.0f}" in shown
    assert json.loads(json.dumps(as_json)) == as_json


def test_of_many_ranks_some_are_shown(small: Plan) -> None:
    """The table names eight, the first and the last among them; CSV has all."""
    one = _only(small.subject, modules="attention", quantization="nf4", rank=4)
    ranks = [lora.model_copy(update={"rank": rank}) for rank in range(1, 21) for lora in one.configurations]
    many = plan(replace(one, configurations=tuple(ranks)), GPUS)
    needs = next(plan_report.tables(many))
    assert list(needs.columns[1].cells) == ["1", "3", "6", "9", "11", "14", "17", "20"]
    assert needs.caption == "8 of 20 ranks; --csv has all"
    assert len(plan_report.as_csv(many).splitlines()) == 21


def test_the_picture_is_written(small: Plan, tmp_path: Path) -> None:
    """As a PNG, whether GPUs are larger or smaller than the bars."""
    plot_plan(small, tmp_path / "new" / "plan.png")
    assert (tmp_path / "new" / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def search(text_file: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(**sections: Any) -> Path:
        data = {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 16}
        base = {"name": "x", "model": str(TINY_LLAMA), "data": data, "training": {"rows": 16, "batch_size": 4}}
        (tmp_path / "search.yaml").write_text(json.dumps({**base, "space": SPACE, **sections}))
        return tmp_path / "search.yaml"

    return write


def _prepared(file: Path) -> Prepared:
    return check(read_search_file(file), RootPaths(file.parent / "runs"), file.parent)


def test_the_share_of_a_space_is_counted(search: Callable[..., Path], root: RootPaths) -> None:
    """Every configuration that the search can propose is predicted on its own largest batch, each once."""
    file = search(space={**SPACE, "batch_size": [1, 16], "dropout": {"low": 0.0, "high": 0.1}})
    gpus = tuple(Devices(name, size) for name, size in (("none", 4_000_000), ("some", 73_500_000), ("all", 2**30)))
    found = answer(Question(file, None, ""), gpus, root).plan
    prepared = _prepared(file)
    space = prepared.search.space
    loras = configurations(space, prepared.search.training.defaults(), prepared.canonical)
    assert len(found.subject.configurations) == len(loras) == prepared.size()[0] == 2**5
    assert all(lora.dropout == 0.1 for lora in loras)
    peaks = [
        found.subject.model.predict(lora, prepared.search.training, Shapes(lora.batch_size, 32, padded=False)).total
        for lora in loras
    ]
    for gpu in gpus:
        assert found.fitting[gpu.name] == sum(gpu.bytes >= peak for peak in peaks)
    assert 0 == found.fitting["none"] < found.fitting["some"] < found.fitting["all"] == len(loras)
    assert sum(row.configurations for row in found.rows) == len(loras)
    assert {row.lora.batch_size for row in found.rows} == {16}


def test_hours_come_from_operations_or_from_a_search(search: Callable[..., Path], root: RootPaths) -> None:
    """Four operations per weight and training token, two per evaluated one, for each trial; faster is shorter."""
    file = search(budget={"trials": 3})
    found = answer(Question(file, None, "", tflops=1), GPUS, root)
    prepared = _prepared(file)
    weights = sum(a * b for a, b in prepared.facts.linears.values())
    tokens, evaluated = 16 * 32, 16 * 32 * len(prepared.rungs)
    assert found.hours is not None
    assert found.hours.hours * 3600 * 1e12 == pytest.approx(3 * weights * (4 * tokens + 2 * evaluated))
    faster = answer(Question(file, None, "", tflops=2), GPUS, root)
    assert faster.hours is not None
    assert faster.hours.hours == found.hours.hours / 2
    assert "GPU-hours of arithmetic at 1 TFLOP/s (--tflops)" in plan_report.lines(found)[1]


def test_the_speed_of_an_earlier_search_goes_before_an_assumed_one(search: Callable[..., Path], tmp_path: Path) -> None:
    """The median of the trials of one that has the same model, task and checkpointing."""
    file, root = search(budget={"trials": 3}), RootPaths(tmp_path / "runs")
    prepared = _prepared(file)
    for name, changes in (("same", {}), ("other", {"task": "seq_cls"})):
        ledger = StudyLedger(_database(root, name), prepared.search.model_copy(update=changes), create=True)
        for speed in (100.0, 200.0, 900.0):
            number, _ = ledger.ask() or (-1, None)
            measured = {"perplexity": 9.0, "peak_vram_gb": 1.0, "tokens_per_second": speed}
            ledger.tell(number, Report(16, measured, Outcome.COMPLETE))
    hours = estimate(prepared, root, tflops=1)
    assert hours.hours * 3600 == pytest.approx(3 * 16 * 32 / 200)
    said = "about 0.0021 hours of a worker at the 200 tokens/s that same measured, 2.6 s each"
    assert str(hours) == f"3 trials of 512 training tokens: {said}"


def _database(root: RootPaths, name: str) -> Path:
    root.search(name).folder.mkdir(parents=True)
    return root.search(name).study_db


def test_an_execution_that_is_solved_is_said_to_be_planned_as_given(
    search: Callable[..., Path], root: RootPaths
) -> None:
    """`execution: auto` can fit more than what is planned."""
    file = search(training={"rows": 16, "batch_size": 4, "execution": "auto"})
    found = answer(Question(file, None, ""), GPUS, root)
    assert any("execution: auto" in line for line in plan_report.lines(found))


def test_limits_that_are_known_are_counted(search: Callable[..., Path], root: RootPaths) -> None:
    """As many as `check` says."""
    file = search(constraints={"trainable_params": "<= 50000"})
    found = answer(Question(file, None, ""), GPUS, root)
    total = len(found.plan.subject.configurations)
    said = f"not proposed: {found.broken} of {total} discrete configurations, over a limit"
    assert any(note.startswith(said) for note in _prepared(file).notes)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question(None, None, "8GB"), "give a search file or --model"),
        (Question(Path("f"), "gpt2", "8GB"), "give a search file or --model, not both"),
        (Question(Path("f"), None, "8GB", batch=2), "--batch: is for --model; f says its own"),
        (Question(Path("f"), None, "8GB", checkpointing=True), "--checkpointing: is for --model; f says its own"),
        (Question(None, "gpt2", "8GB,x"), "--gpu: must be a size such as 8GB or 500MB (got 'x')"),
    ],
)
def test_questions_that_contradict_themselves(question: Question, words: str) -> None:
    """Are refused before anything heavy is loaded."""
    with pytest.raises(InvalidInput) as caught:
        question.checked()
    assert str(caught.value) == words


def test_what_cannot_be_planned_says_why(tmp_path: Path, search: Callable[..., Path], root: RootPaths) -> None:
    """Rows that the model does not take, a task of one's own, and a model that cannot be traced."""
    with pytest.raises(InvalidInput, match=r"--length: 2000 is more than the 1024 positions of the model"):
        answer(Question(None, "gpt2", "", length=2000), GPUS, root)
    (tmp_path / "mine.py").write_text("from lorafront.trainables.causal_lm import CausalLM\nTASK = CausalLM()\n")
    with pytest.raises(InvalidInput, match=r"task: a plan needs a task whose batches are known"):
        answer(Question(search(task="mine:TASK"), None, ""), GPUS, root)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "opt", "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "layerdrop": 0.1,
                    "num_attention_heads": 2, "word_embed_proj_dim": 64, "vocab_size": 512})
    )  # fmt: skip
    with pytest.raises(NotTraced, match="cannot be told before it trains"):
        answer(Question(None, str(tmp_path), ""), GPUS, root)
