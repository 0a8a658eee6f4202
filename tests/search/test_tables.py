"""Tables: a study on 80 columns, as CSV, and in a few lines."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support import lora

from lorafront.search.front import front_of
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.search.tables import MOST_TRIALS, front_csv, front_table, number, summary, trials_table
from lorafront.spaces.lora import HYPERPARAMETERS
from lorafront.spaces.objectives import OBJECTIVES
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

SEARCH = parse_search({"name": "phi2-alpaca", "model": "microsoft/phi-2", "data": {"path": "tatsu-lab/alpaca"}})
NOW = datetime(2025, 1, 1, tzinfo=UTC)


def record(n, outcome=Outcome.COMPLETE, measured=None, **changes):
    """A trial that ended so; a failed one has no measurements."""
    state = {Outcome.COMPLETE: "COMPLETE", Outcome.STOPPED: "PRUNED", Outcome.DIVERGED: "PRUNED"}.get(outcome, "FAIL")
    return TrialRecord(n, state, lora(**changes), 1, (), Report(64, measured or {}, outcome), NOW, NOW)


def scored(n, perplexity, vram, **changes):
    return record(n, measured={"perplexity": perplexity, "peak_vram_gb": vram}, **changes)


@pytest.fixture
def table():
    """Two members of the front, one that is beaten, and one each that stopped, failed and runs."""
    return StudyTable(
        SEARCH,
        (
            scored(0, 3.25, 8.5, rank=16, modules="attention+mlp", learning_rate=1e-4),
            scored(1, 4.5, 6.0, rank=4, modules="query", quantization="nf4", learning_rate=2e-4),
            scored(2, 5.0, 9.0, rank=4),
            record(3, Outcome.STOPPED, {"perplexity": 7.125, "peak_vram_gb": 5.0}),
            record(4, Outcome.CUDA_OOM),
            TrialRecord(5, "RUNNING", lora(), 1, (Report(8, {"perplexity": 9.0}),), None, NOW, None),
        ),
        {"bare base in bf16": {"perplexity": 10.25, "eval_loss": 2.3}, "bare base in nf4": {"perplexity": 11.5}},
        (),
    )


def drawn(table, width=80):
    """The lines of a table as a terminal shows them."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue().splitlines()


def row(lines, first):
    """The words of the row that begins with a trial number."""
    [found] = [line.split() for line in lines if line.split()[:1] == [first]]
    return found


def test_front_table_has_a_row_for_each_member(table):
    """The front's table shows each member's number and label, what else varies between trials, and the objectives."""
    lines = drawn(front_table(table, front_of(table)))
    assert lines[0].strip() == "Pareto front of phi2-alpaca"
    assert row(lines, "trial") == ["trial", "configuration", "lr", "perplexity", "VRAM", "GiB"]
    assert row(lines, "0") == ["0", "r16", "a8", "attention+mlp", "bf16", "0.0001", "3.250", "8.5"]
    assert row(lines, "1") == ["1", "r4", "a8", "query", "nf4", "0.0002", "4.500", "6"]
    assert not any(line.split()[:1] == ["2"] for line in lines)


def test_front_table_says_once_what_is_the_same_everywhere(table):
    """Parameters with one value in all complete trials stand in the caption, and take no column."""
    text = " ".join(" ".join(drawn(front_table(table, front_of(table)))).split())
    everywhere = "drop 0, bias none, batch 4, accum 1, decay 0, warmup 0.1, scheduler linear"
    assert text.endswith(f"everywhere: {everywhere}")


DEFAULT = {"rank": 64, "alpha": 128.0, "modules": "attention+mlp", "quantization": "nf4_double", "dropout": 0.15,
           "bias": "lora_only", "learning_rate": 1.25e-4}  # fmt: skip
EVERY = {**DEFAULT, "batch_size": 128, "gradient_accumulation": 16, "weight_decay": 0.01, "warmup": 0.05,
         "scheduler": "constant"}  # fmt: skip


def test_of_very_many_trials_those_that_matter_are_drawn():
    """The front, what runs and the newest are rows whatever their number, and the caption says how many are not."""
    running = TrialRecord(3, "RUNNING", lora(), 1, (), None, NOW, None)
    others = tuple(scored(n, 5.0 + n, 9.0) for n in range(4, 1004))
    many = StudyTable(SEARCH, (scored(0, 3.0, 8.0), scored(1, 4.0, 9.0), running, *others), {}, ())
    lines = drawn(trials_table(many))
    numbers = [
        line.split()[0] for line in lines if line.split()[:1] and line.split()[0].isdigit() and "older" not in line
    ]
    assert numbers == ["0", "3", *(str(n) for n in range(1004 - MOST_TRIALS, 1004))]
    assert any(f"{1003 - MOST_TRIALS - 2} older trials are left out; --json has all" in line for line in lines)


@pytest.mark.parametrize("changes", [DEFAULT, pytest.param(EVERY)], ids=["default", "every"])
def test_front_table_fits_a_terminal(table, changes):
    """No line is wider than 80 columns and nothing is cut, whatever varies and however long values are."""
    wide = StudyTable(SEARCH, (*table.trials, scored(12345, 123456.789, 0.123456, **changes)), {}, ())
    lines = drawn(front_table(wide, front_of(wide)))
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    found = row(lines, "12345")
    assert found[1:3] == ["r64", "a128"]
    assert found[-2:] == ["123456.8", "0.1235"]


def test_front_table_does_not_call_different_values_the_same():
    """Two learning rates that differ in the third digit are not said to be the same everywhere."""
    trials = (scored(0, 3.0, 8.0, learning_rate=1.01e-4), scored(1, 4.0, 6.0, learning_rate=1.04e-4))
    table = StudyTable(SEARCH, trials, {}, ())
    assert "lr 0.0001" not in " ".join(drawn(front_table(table, front_of(table))))


def test_empty_front_is_a_table_without_rows():
    """A study without trials still draws its front, with the columns of the objectives."""
    empty = StudyTable(SEARCH, (), {}, ())
    assert row(drawn(front_table(empty, [])), "trial") == ["trial", "configuration", "perplexity", "VRAM", "GiB"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("perplexity", 3.25, "3.250"), ("perplexity", 123.456, "123.5"), ("peak_vram_gb", 8.123456, "8.123"),
        ("trainable_params", 1234567.0, "1,234,567"), ("adapter_mb", 12.0, "12"), ("train_seconds", 1234.5, "1234"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_that_matter(name, value, text):
    """A value is written with four or five digits, parameters with all of theirs."""
    assert number(value, OBJECTIVES[name]) == text


def test_csv_has_every_parameter_and_objective(table):
    """The CSV of the front has a line per member, with all parameters and the exact values."""
    rows = list(csv.DictReader(io.StringIO(front_csv(table))))
    assert [line["trial"] for line in rows] == ["0", "1"]
    assert list(rows[0]) == ["trial", *HYPERPARAMETERS, "perplexity", "peak_vram_gb"]
    assert (rows[0]["learning_rate"], rows[0]["perplexity"], rows[0]["modules"]) == ("0.0001", "3.25", "attention+mlp")


def test_csv_takes_members_that_are_given(table):
    """Given members are written instead of the front; none at all leaves the header."""
    assert [line["trial"] for line in csv.DictReader(io.StringIO(front_csv(table, [table.trials[2]])))] == ["2"]
    assert front_csv(table, []).count("\n") == 1


@given(st.sampled_from(["", *"=+-@\t"]), st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1))
def test_csv_is_text_that_no_spreadsheet_runs(opening, rest):
    """Any text comes back from the CSV as it is, behind an apostrophe exactly where a spreadsheet would run it."""
    table = StudyTable(SEARCH, (scored(0, 3.0, 8.0, modules=opening + rest),), {}, ())
    [line] = csv.DictReader(io.StringIO(front_csv(table), newline=""))
    runs = (opening + rest)[0] in "=+-@\t"
    assert line["modules"] == ("'" if runs else "") + opening + rest


def test_csv_keeps_negative_numbers_numbers():
    """Only text is put behind an apostrophe, numbers are not."""
    table = StudyTable(SEARCH, (scored(0, -3.0, 8.0),), {}, ())
    assert next(csv.DictReader(io.StringIO(front_csv(table))))["perplexity"] == "-3.0"


def test_summary_counts_the_ends_and_names_the_front(table):
    """A summary says what was searched, how trials ended, what the bare base scores, and the front."""
    assert summary(table).splitlines() == [
        "phi2-alpaca: 5 of 32 trials recorded; microsoft/phi-2 on tatsu-lab/alpaca",
        "3 x finished at full fidelity",
        "1 x stopped early: others were ahead at the same rung",
        "1 x ran out of GPU memory",
        "bare base in bf16: perplexity 10.250",
        "bare base in nf4: perplexity 11.500",
        "front: 2 configurations",
        "trial 0: r16 a8 attention+mlp bf16 (perplexity 3.250, peak VRAM 8.5 GiB)",
        "trial 1: r4 a8 query nf4 (perplexity 4.500, peak VRAM 6 GiB)",
        "export: lorafront export phi2-alpaca --out DIR",
    ]


def test_summary_as_markdown_is_a_list(table):
    """In Markdown each line of the summary is an item of a list."""
    assert summary(table, markdown=True).splitlines() == [f"- {line}" for line in summary(table).splitlines()]


def test_trials_table_says_where_every_trial_stands(table):
    """Every trial has a row with the rows that it has seen, its newest values, and its state in words."""
    lines = drawn(trials_table(table), width=120)
    assert row(lines, "0") == ["0", "r16", "a8", "attention+mlp", "bf16", "64", "3.250", "8.5", "front"]
    assert row(lines, "2")[-4:] == ["64", "5.000", "9", "complete"]
    assert row(lines, "3")[-4:] == ["64", "7.125", "5", "stopped"]
    assert row(lines, "4")[-3:] == ["0", "cuda", "oom"]
    assert row(lines, "5")[-3:] == ["8", "9.000", "running"]
