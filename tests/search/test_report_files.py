"""The report when a search ends, when its front is confirmed, and when it cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import TINY_LLAMA

from lorafront.search.confirm import confirm_search
from lorafront.search.front import front_of
from lorafront.search.mlflow_reader import Run, read_runs
from lorafront.search.mlflow_tracker import open_tracking
from lorafront.search.paths import RootPaths
from lorafront.search.report_files import keep_report
from lorafront.search.run import resume_search, run_search
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable, read_study


def test_what_keeps_a_report_from_being_written_is_said_and_nothing_more_happens(tmp_path: Path) -> None:
    """With the command that writes it."""
    table = StudyTable(parse_search({"name": "n", "model": "m", "data": {"path": "d"}}), (), {}, ())
    paths, said = RootPaths(tmp_path).search("n"), []
    paths.report_html.mkdir(parents=True)
    keep_report(table, paths, said.append)
    (line,) = said
    assert line.startswith("no report (IsADirectoryError")
    assert line.endswith("write it with: lorafront report n")


@pytest.mark.slow
def test_a_search_ends_with_its_report_and_hears_of_its_replicates(ray_session: None, tmp_path: Path) -> None:
    """Report and runs speak by the replicates once there are any; the parameters of a run stay true for ever."""
    rows = [json.dumps({"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."}) for i in range(48)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    search = parse_search({
        "name": "told", "model": str(TINY_LLAMA),
        "data": {"path": str(tmp_path / "rows.jsonl"), "format": "question_answer", "train_rows": 16, "eval_rows": 8,
                 "max_length": 64},
        "space": {"rank": [2, 4, 8], "quantization": "bf16", "modules": "attention", "bias": "none"},
        "training": {"rows": 16, "rungs": 2, "batch_size": 4}, "budget": {"trials": 4},
    })  # fmt: skip
    root = RootPaths(tmp_path / "root")
    table = run_search(search, root, engine="toy")
    report = root.search("told").report_html
    assert "## Pareto front" in report.with_suffix(".md").read_text()
    assert "## With other seeds" not in report.with_suffix(".md").read_text()
    assert not any("confirmed_perplexity" in run.metrics for run in runs(table, root))
    found = confirm_search("told", root, seeds=3, engine="toy")
    assert "## With other seeds" in report.with_suffix(".md").read_text()
    assert not root.search("told-confirm").report_html.exists()
    children = {run.trial: run for run in runs(table, root)}
    for entry in found.entries:
        run = children[entry.trial.number]
        assert run.metrics["confirmed_perplexity"] == entry.values["perplexity"]
        assert run.metrics["front_probability"] == entry.probability
        assert run.tags["confirmed"] in {"kept", "needless", "beaten"}
    assert {run.status for run in children.values()} == {"FINISHED"} | {
        "KILLED" for trial in table.trials if trial.state == "PRUNED"
    }
    assert "with other seeds" in children[None].tags["mlflow.note.content"]
    own = read_study(root.search("told-confirm").study_db)
    (parent,) = (run for run in runs(own, root) if run.trial is None)
    assert parent.tags["budget"] == f"{len(own.trials)} of {len(own.trials)} trials recorded"
    before = {run.trial: (run.metrics, run.tags) for run in runs(table, root)}
    resume_search("told", root, engine="toy")
    assert {run.trial: (run.metrics, run.tags) for run in runs(table, root)} == before
    assert {trial.number for trial in front_of(table)} <= {entry.trial.number for entry in found.entries}


def runs(table: StudyTable, root: RootPaths) -> list[Run]:
    return read_runs(open_tracking(table.search, root), table)
