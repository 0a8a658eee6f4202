"""Anybody's table of results becomes a search that can be read and not run."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trial_table import TABLES, read_table

from lorafront.search.cli import main
from lorafront.search.front import front_of
from lorafront.search.import_results import MOST_CHOICES, Reading, import_results, parameter, understand
from lorafront.search.paths import RootPaths
from lorafront.search.result_columns import USUAL, Column, cell, match, plain
from lorafront.spaces.errors import InvalidInput, SearchExists

PUBLISHED = """model,r,lora_alpha,target_modules,load_in_4bit,lr,val_ppl,max_memory_mb,comment
base-1b,8,16,"q_proj,v_proj",True,2e-4,6.5,5120,ok
base-1b,16,32,"q_proj,v_proj",True,2e-4,6.2,5400,
base-1b,64,128,"['q_proj', 'k_proj']",False,1e-4,5.9,9800,best
base-1b,16,32,"v_proj,q_proj",False,2e-4,6.25,9900,
"""
Run = Callable[..., tuple[int, str, str]]


def written(folder: Path, text: str, name: str = "table.csv") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in this process, from an empty folder; returns (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorafront", *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def problems(folder: Path, text: str, reading: Reading | None = None) -> list[str]:
    with pytest.raises(InvalidInput) as refused:
        understand(written(folder, text), "pub", reading or Reading())
    return [str(problem) for problem in refused.value.problems]


def test_the_usual_names_and_units_are_understood(tmp_path: Path) -> None:
    """A table as PEFT's users write it has its values in our units, and its space is what was tried."""
    table = understand(written(tmp_path, PUBLISHED), "pub", Reading())
    first = table.results[0]
    assert (first.lora.rank, first.lora.alpha, first.lora.modules) == (8, 16.0, "q_proj+v_proj")
    assert [result.lora.quantization for result in table.results] == ["nf4", "nf4", "bf16", "bf16"]
    assert first.measured == {"perplexity": 6.5, "peak_vram_gb": 5.0, "peak_vram_source": "imported"}
    assert table.search.model.name == "base-1b"
    assert table.search.space.rank == [8, 16, 64]
    assert any("assumed" in note and "dropout 0.05" in note for note in table.notes)
    assert any("not read: comment" in note for note in table.notes)


@pytest.mark.parametrize("dialect", ["semicolons", "tabs", "json lines", "json array", "byte order mark"])
def test_dialects_say_the_same(dialect: str, tmp_path: Path) -> None:
    """Spreadsheets, databases and scripts write the same table differently."""
    rows = list(csv.DictReader(PUBLISHED.splitlines()))
    for row in rows:
        row["target_modules"] = "q_proj v_proj"
        row["r"] = row["val_ppl"].replace(".", "")  # distinct
    commas = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])
    text, name = {
        "semicolons": (commas.replace(",", ";"), "t.csv"),
        "tabs": (commas.replace(",", "\t"), "t.tsv"),
        "json lines": ("\n\n".join(map(json.dumps, rows)), "t.jsonl"),
        "json array": (json.dumps(rows), "t.json"),
        "byte order mark": ("\ufeff" + commas.replace("\n", "\r\n"), "t.csv"),
    }[dialect]
    expected = understand(written(tmp_path, commas), "pub", Reading())
    found = understand(written(tmp_path, text, name), "pub", Reading())
    assert [r.lora for r in found.results] == [r.lora for r in expected.results]
    assert [r.measured for r in found.results] == [r.measured for r in expected.results]


def test_a_loss_becomes_a_perplexity_and_a_map_overrides_names(tmp_path: Path) -> None:
    """Also where another column has the usual name, and memory is in a unit that the user says."""
    text = "a,b,ppl,gpu\n4,0.5,99,2e9\n8,0.25,98,3e9\n"
    reading = Reading({"rank": "a", "peak_vram_gb": "gpu"}, loss="b", vram_unit="bytes")
    table = understand(written(tmp_path, text), "pub", reading)
    assert [r.measured["perplexity"] for r in table.results] == [math.exp(0.5), math.exp(0.25)]
    assert table.results[0].measured["peak_vram_gb"] == pytest.approx(2e9 / 2**30)
    assert [r.lora.alpha for r in table.results] == [8.0, 16.0]  # the recommended alpha is twice the rank


def test_all_that_is_wrong_is_said_with_its_line(tmp_path: Path) -> None:
    """Empty cells, words, what is out of range, and what no configuration can be."""
    text = "rank,alpha,ppl,vram_gb\n8,1,5,6\n,1,5,6\n8.5,1,nan,6\n4,1,0.5,6\n4,1,5,7e9\n0,1,5,6\n"
    said = problems(tmp_path, text)
    assert [line.split(":")[0] for line in said] == ["line 3", "line 4", "line 4", "line 5", "line 6", "line 7"]
    assert said[0] == "line 3: rank is empty"
    assert said[1] == "line 4: rank must be an integer (got '8.5')"


def test_what_is_missing_is_said_with_what_there_is(tmp_path: Path) -> None:
    """No quality, a single objective, no hyperparameter; two columns that could be the same; names that are none."""
    assert "a quality is missing" in problems(tmp_path, "rank,vram_gb\n8,6\n")[0]
    assert "The table has rank, vram_gb." in problems(tmp_path, "rank,vram_gb\n8,6\n")[-1]
    assert "needs two objectives" in problems(tmp_path, "rank,ppl\n8,6\n")[0]
    assert "no hyperparameter" in problems(tmp_path, "x,ppl,vram_gb\n8,6,4\n")[0]
    assert "could all be perplexity" in problems(tmp_path, "rank,ppl,val_ppl,vram_gb\n8,6,4,3\n")[0]
    assert "Did you mean 'rank'" in problems(tmp_path, PUBLISHED, Reading({"ranks": "r"}))[0]
    assert "no column 'R'" in problems(tmp_path, PUBLISHED, Reading({"rank": "R"}))[0]
    assert "more than once" in problems(tmp_path, "rank,rank,ppl,vram_gb\n8,8,6,4\n")[0]
    assert "several models" in problems(tmp_path, PUBLISHED.replace("base-1b,8", "other,8"))[0]


def test_a_configuration_is_there_once(tmp_path: Path) -> None:
    """Replicates are told apart by their seed, or by the user's word; else each group of rows is refused."""
    text = "rank,ppl,vram_gb,run\n8,5,6,1\n4,6,5,1\n8,5.1,6,2\n"
    said = problems(tmp_path, text)
    assert said[0].startswith("line 2, line 4: the same configuration")
    assert "differ in" in said[0]
    assert "run" in said[0]
    table = understand(written(tmp_path, text), "pub", Reading({"seed": "run"}))
    assert [result.lora.seed for result in table.results] == [1, 1, 2]
    counted = understand(written(tmp_path, text), "pub", Reading(replicates=True))
    assert [result.lora.seed for result in counted.results] == [0, 0, 1]
    same = understand(written(tmp_path, "rank,ppl,vram_gb,seed\n8,5,6,7\n4,6,5,7\n"), "pub", Reading())
    assert [result.lora.seed for result in same.results] == [None, None]


def test_every_command_refuses_or_reads(run: Run, tmp_path: Path) -> None:
    """What reads a search works; what would run it or take something out says why not, and changes nothing."""
    written(tmp_path, PUBLISHED)
    code, out, _ = run("import-results", "table.csv", "--name", "pub", "--map", "perplexity=val_ppl")
    assert code == 0
    assert "nothing was trained or measured here" in out
    for command in ("pareto", "recommend", "status", "report"):
        code, out, err = run(command, "pub")
        assert (code, err) == (0, "")
        assert "lorafront e" not in out  # neither export nor extend
    assert "pub" in run("list")[1]
    before = (tmp_path / "runs" / "pub" / "study.db").read_bytes()
    for command in ("resume", "stop", "confirm", "mlflow-sync", "doctor", "extend", "export"):
        code, _, err = run(command, "pub", *(["--out", "x"] if command == "export" else []))
        assert code == 2
        assert re.fullmatch(r"pub was imported from table\.csv and is read-only, .*\n", err)
    assert (tmp_path / "runs" / "pub" / "study.db").read_bytes() == before
    code, _, err = run("run", "runs/pub/search.yaml", "--root", "other")
    assert code == 2
    assert "imported" in err
    assert run("import-results", "table.csv", "--name", "pub")[0] == 2


def test_reports_do_not_claim_a_measurement(run: Run, tmp_path: Path) -> None:
    """Notes stand in both; there is no figure of progress, because nobody knows how long these trained."""
    written(tmp_path, PUBLISHED)
    run("import-results", "table.csv", "--name", "pub")
    run("report", "pub")
    markdown = (tmp_path / "runs" / "pub" / "report.md").read_text()
    page = (tmp_path / "runs" / "pub" / "report.html").read_text()
    for text in (markdown, page):
        assert "nothing was trained or measured here" in text
        assert "none was measured here" in text
        assert "To repeat it" not in text
    assert 'id="figure-hypervolume"' not in page


def test_a_refused_table_leaves_nothing_and_a_taken_name_stays(tmp_path: Path) -> None:
    """The study is there whole or not at all."""
    root = RootPaths(tmp_path / "runs")
    with pytest.raises(InvalidInput):
        import_results(written(tmp_path, "rank,ppl\n1,2\n"), "pub", root, Reading())
    assert not root.root.exists()
    file = written(tmp_path, PUBLISHED)
    import_results(file, "pub", root, Reading())
    with pytest.raises(SearchExists):
        import_results(file, "pub", root, Reading())
    assert [path.name for path in root.root.iterdir()] == ["pub"]


def test_a_real_table_keeps_its_front(tmp_path: Path) -> None:
    """The benchmark's table of real trainings, written as a CSV of another project, has the front that it had."""
    table = read_table(TABLES / "tiny-t5-gsm8k.json")
    rows = []
    for number, lora in list(enumerate(table.configurations))[::4]:  # Optuna takes 30 ms to write one
        found = table.measured(number, len(table.rungs) - 1)
        rows.append(
            {
                "lora_r": lora.rank, "lora_alpha": lora.alpha, "target": lora.modules, "bits": lora.quantization,
                "lr": lora.learning_rate, "eval/loss": found["eval_loss"], "peak_mem_mib": found["peak_vram_gb"] * 1024,
            }
        )  # fmt: skip
    file = tmp_path / "t5.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    imported = import_results(file, "t5", RootPaths(tmp_path / "runs"), Reading({"modules": "target"}))
    assert len(imported.complete) == len(rows)
    points = [(row["eval/loss"], row["peak_mem_mib"]) for row in rows]
    assert [trial.number for trial in sorted(front_of(imported), key=lambda t: t.number)] == unbeaten(points)


def unbeaten(points: list[tuple[float, float]]) -> list[int]:
    """By brute force."""
    return [i for i, (a, b) in enumerate(points) if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in points)]


ROWS = st.lists(
    st.tuples(
        st.integers(1, 256), st.sampled_from([8.0, 16.0, 0.5]), st.floats(1e-6, 1e-1),
        st.floats(1.0, 1e6), st.floats(1e-3, 9e3),
    ),
    min_size=1, max_size=3 * MOST_CHOICES, unique_by=lambda row: row[:3],
)  # fmt: skip


@settings(max_examples=15)
@given(ROWS)
def test_the_front_of_what_was_imported_is_that_of_the_table(rows: list[tuple[Any, ...]]) -> None:
    """Whatever the table: every row is a trial with its numbers, in its order, and the front is brute force's."""
    with tempfile.TemporaryDirectory() as folder:
        lines = ["r,alpha,lr,ppl,vram_gb", *(",".join(map(repr, row)) for row in rows)]
        file = written(Path(folder), "\n".join(lines))
        table = import_results(file, "p", RootPaths(Path(folder) / "runs"), Reading())
    found = [
        (
            t.lora.rank, t.lora.alpha, t.lora.learning_rate,
            t.measurements["perplexity"], t.measurements["peak_vram_gb"],
        )
        for t in table.trials
    ]  # fmt: skip
    assert found == rows
    assert sorted(trial.number for trial in front_of(table)) == unbeaten([row[3:] for row in rows])


@given(st.lists(st.integers(1, 10_000), min_size=1))
def test_a_parameter_holds_what_was_tried(values: list[int]) -> None:
    """As one value, as choices, or within a range."""
    found = parameter(values)
    held = found if isinstance(found, list) else [found]
    if isinstance(found, dict):
        assert (found["low"], found["high"]) == (min(values), max(values))
    else:
        assert set(held) == set(values)


@given(st.sampled_from(sorted(USUAL)), st.sampled_from(["{}", "params.{}", "metrics/{}", " {} "]))
def test_usual_names_are_known_in_all_writings(name: str, form: str) -> None:
    """With the prefixes of MLflow and W&B, in capitals, with spaces or slashes."""
    written_so = form.format(name.upper().replace("_", " "))
    assert plain(written_so) == name
    found, wrong = match([written_so], {})
    assert not wrong
    assert found[USUAL[name][0]] == Column(written_so, USUAL[name][1])


@pytest.mark.parametrize(
    ("ours", "raw", "value"),
    [
        ("modules", "['v_proj', 'q_proj']", "q_proj+v_proj"),
        ("modules", ["q_proj"], "q_proj"),
        ("modules", "mlp+attention", "attention+mlp"),
        ("quantization", "4-bit", "nf4"),
        ("quantization", 8, "int8"),
        ("quantization", "bfloat16", "bf16"),
        ("load_in_4bit", "False", False),
        ("rank", "16.0", 16),
        ("trainable_params", "1e6", 1_000_000),
    ],
)
def test_cells_say_the_same_in_several_words(ours: str, raw: object, value: object) -> None:
    """One meaning each."""
    assert cell(ours, Column(ours), raw) == value


@pytest.mark.parametrize(
    ("ours", "raw"),
    [("modules", "[q_proj"), ("quantization", "3"), ("load_in_4bit", "maybe"), ("rank", True), ("accuracy", "93.5"),
     ("learning_rate", "0,0002"), ("peak_vram_gb", 0), ("f1", None), ("train_seconds", float("inf"))],
)  # fmt: skip
def test_cells_without_a_meaning_are_refused(ours: str, raw: object) -> None:
    """Rather than guessed."""
    with pytest.raises(ValueError, match=r"must be|is no|is empty"):
        cell(ours, Column(ours), raw)
