"""The memory benchmark on a CPU, and how it compares points."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory_gpu import main
from memory_points import MODELS, OUT_OF_MEMORY, Point, compare, grid, kendall, table

MIB = 2**20


def run(out: Path, *more: str) -> dict:
    arguments = ["--device", "cpu", "--models", "tiny-llama", "--jobs", "1", "--out", str(out), *more]
    assert main(arguments) == 0
    return json.loads(out.read_text())


def test_runs_on_a_cpu_and_says_so(tmp_path: Path) -> None:
    """Steps are measured and predicted, and the file says that nothing in it is about a GPU."""
    result = run(tmp_path / "found.json", "--quantizations", "nf4", "--points", "2", "--lengths", "8", "16")
    assert result["device"]["kind"] == "cpu"
    assert "no GPU was at hand" in result["device"]["note"]
    assert [point["rank"] for point in result["points"]] == [8, 128]
    assert all(point["predicted"] == pytest.approx(point["allocated"], rel=1e-3) for point in result["points"])
    assert result["summary"]["bases"]["tiny-llama/nf4"]["kendall_tau"] == 1
    assert result["left_out"] == []


def test_predictions_can_follow_elsewhere(tmp_path: Path) -> None:
    """What was measured alone is kept, and is predicted by another call."""
    first, second = tmp_path / "measured.json", tmp_path / "predicted.json"
    alone = run(first, "--measure-only", "--quantizations", "bf16", "--points", "1", "--lengths", "8", "16")
    assert alone["summary"] is None
    result = run(second, "--from", str(first))
    assert [point["allocated"] for point in result["points"]] == [point["allocated"] for point in alone["points"]]
    assert result["summary"]["points"] == 1


def test_out_of_time_is_no_error(tmp_path: Path) -> None:
    """Points for which there was no time are named."""
    result = run(tmp_path / "found.json", "--budget-minutes", "0", "--points", "2", "--quantizations", "bf16", "int8")
    assert result["points"] == []
    assert len(result["left_out"]) == 4
    assert result["left_out"][0] == "tiny-llama bf16 r8 all-linear 4x16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the option for a CPU, writes nothing, and does not end well."""
    assert main(["--out", str(tmp_path / "found.json")]) == 1
    assert "--device cpu" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_errors_are_of_totals_and_of_rank_increments() -> None:
    """Below zero is too little; a constant is no error from rank to rank; what was not measured is counted apart."""
    point = Point("m", "bf16")
    points = [
        replace(point, rank=8, allocated=100 * MIB, reserved=110 * MIB, process=600 * MIB, predicted=90 * MIB),
        replace(point, rank=16, allocated=120 * MIB, reserved=130 * MIB, process=630 * MIB, predicted=110 * MIB),
        replace(point, rank=32, allocated=160 * MIB, reserved=180 * MIB, process=690 * MIB, predicted=170 * MIB),
        replace(point, rank=64, error=OUT_OF_MEMORY, predicted=300 * MIB),
    ]
    summary = compare(points)
    assert (summary["points"], summary["out_of_memory"]) == (3, 1)
    assert summary["worst_under_prediction"] == -0.1
    assert summary["relative_error_of_rank_increments"] == {"median": 0.25, "p95": 0.5}
    assert summary["bases"]["m/bf16"]["kendall_tau"] == 1
    assert summary["beside_allocated_mib"] == {"median": 510, "max": 530, "reserved_median": 10, "reserved_max": 20}
    assert max(map(len, table(summary).splitlines())) <= 80
    assert kendall([(1, 1), (2, 3), (3, 2)]) == pytest.approx(1 / 3, abs=1e-3)


def test_points_of_a_base_differ_and_have_names() -> None:
    """No point stands twice in a grid, and every model has one."""
    for model in MODELS:
        points = grid(model, "nf4", (512, 2048), paged=True)
        assert len({point.name for point in points}) == len(points) == 19
