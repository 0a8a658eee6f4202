"""The benchmark of the packed engine on the tiny model: what it measures, how it compares, what it says of failures."""

from __future__ import annotations

import json
from pathlib import Path

import packed
import pytest

STOCK = {"tokens": 32, "slots": 0, "processes": 1, "label": "PEFT, one by one"}


def run(out: Path, *more: str) -> dict:
    sweep = ["--quantizations", "bf16", "--tokens", "32", "--length", "16", "--seconds", "0.2", "--slots", "1", "2"]
    packed.main(["--device", "cpu", "--processes", "1", "--packed-processes", "1", "--out", str(out), *sweep, *more])
    return json.loads(out.read_text())


@pytest.mark.slow
def test_a_sweep_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every column has its times, memory and share of the floor; ratios are to stock PEFT of the same invocation."""
    result = run(tmp_path / "found.json")
    (base,) = result["bases"]
    assert (base["model"], base["quantization"], base["device"]) == ("tiny-llama", "bf16", result["device"])
    assert base["linear_parameters"] == 4 * (4 * 128 * 128 + 3 * 128 * 384)
    labels = ["PEFT, one by one", "packed, K = 1", "packed, K = 2"]
    assert [row["label"] for row in base["rows"]] == labels
    for row in base["rows"]:
        assert row["tokens"] == 32
        assert min(row["ms"], row["trials_per_hour"], row["start_seconds"], row["setup_seconds"]) > 0
        assert row["peak_gib"] < 16
        floor = 1000 * 4 * base["linear_parameters"] * 32 / base["flops"]
        assert row["floor_share"] == pytest.approx(floor / row["ms"])
        assert row["ratio"] == pytest.approx(base["rows"][0]["ms"] / row["ms"])
        assert row["ratio_per_hour"] == pytest.approx(row["trials_per_hour"] / base["rows"][0]["trials_per_hour"])
    assert set(result["versions"]) == set(packed.PACKAGES)
    assert result["arguments"]["slots"] == [1, 2]
    said = capsys.readouterr().out
    assert "tiny-llama, bf16: 0.9 M linear parameters" in said
    assert all(label in said for label in (*labels, "32 tokens", "found.json"))


def test_a_column_that_fails_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each job of a process that dies has its last words in place of numbers."""
    options = packed.options_of(["--device", "cpu", "--length", "16", "--tokens", "32"])
    jobs = [{"tokens": 32, "slots": 0, "seconds": 0.1}]
    (row,) = packed.run_column(packed.Column(1, 0), str(tmp_path), "bf16", jobs, options)
    assert "ms" not in row
    assert row["error"]
    base = {"model": "m", "quantization": "bf16", "linear_parameters": 1e6, "flops": 1e9, "device": "none"}
    text = packed.table({**base, "rows": [packed.judged(row, [row], base, 1e9)]})
    assert row["error"] in text
    assert capsys.readouterr().out == ""


def test_ratios_are_to_the_best_of_stock_peft() -> None:
    """Of all columns of processes at the same number of tokens; goals stand beside them."""
    rows = [
        {**STOCK, "ms": 40.0, "trials_per_hour": 100.0, "peak_gib": 1.0},
        {**STOCK, "ms": 20.0, "trials_per_hour": 50.0, "peak_gib": 2.0, "processes": 2},
        {**STOCK, "ms": 1.0, "trials_per_hour": 9000.0, "peak_gib": 2.0, "tokens": 64},
        {**STOCK, "ms": 5.0, "trials_per_hour": 400.0, "peak_gib": 1.5, "slots": 8},
        {**STOCK, "error": "out of memory", "slots": 16},
    ]
    found = [packed.judged(row, rows, {"linear_parameters": 1e6}, 1e11) for row in rows]
    assert (found[3]["ratio"], found[3]["ratio_per_hour"]) == (4.0, 4.0)
    assert found[3]["floor_share"] == pytest.approx(4 * 1e6 * 32 / 1e11 / 5e-3)
    assert "ratio" not in found[4]
    labels = [packed.Column(*of).label for of in ((1, 0), (4, 0), (1, 8), (2, 8))]
    assert labels == ["PEFT, one by one", "PEFT, 4 processes", "packed, K = 8", "packed, 2 x K = 8"]


def test_goals_are_of_models_and_tokens_that_are_measured() -> None:
    """What issue 6 asks for is in the suite, and its table says so."""
    measured = {(model, count) for model, _, tokens in packed.SUITES["h100"] for count in tokens}
    assert set(packed.GOALS) == measured
    base = {"model": "qwen2.5-0.5b", "quantization": "bf16", "linear_parameters": 1e6, "flops": 1e9, "device": "none"}
    row = {**STOCK, "tokens": 256, "ms": 1.0, "trials_per_hour": 1.0, "peak_gib": 1.0, "floor_share": 0.5}
    assert "256 tokens; goal: 8 times the best of PEFT" in packed.table({**base, "rows": [row]})
