"""The command line: what it prints, what it exits with, and that it answers at once."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import TINY_LLAMA

from lorafront.search.cli import main
from lorafront.search.paths import RootPaths
from lorafront.search.search_file import parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import read_study
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in this process, from an empty folder; returns (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

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


@pytest.fixture
def toy_search(tmp_path: Path) -> str:
    """A finished search of ten toy trials, one of them out of memory, under the default root."""
    search = parse_search(
        {"name": "toy", "model": "m", "data": {"path": "d"}, "budget": {"trials": 10}, "space": {"bias": "none"}}
    )
    paths = RootPaths(tmp_path / "runs").search("toy")
    paths.folder.mkdir(parents=True)
    ledger = StudyLedger(paths.study_db, search, create=True)
    for i in range(10):
        number, lora = ledger.ask() or (-1, None)
        assert lora is not None
        session = ToySession(lora)
        session.train(100)
        outcome = Outcome.CUDA_OOM if i == 3 else Outcome.COMPLETE
        ledger.tell(number, Report(100, dict(session.evaluate()), outcome))
    return "toy"


def test_an_exhausted_search_says_so(run: Run, tmp_path: Path) -> None:
    """A search that has tried all that there is says that instead of how to go on."""
    space = {"rank": [4, 8], "alpha": 8, "modules": "query", "quantization": "nf4", "dropout": 0.0, "bias": "none",
             "learning_rate": 1e-3}  # fmt: skip
    search = parse_search({"name": "small", "model": "m", "data": {"path": "d"}, "space": space})
    paths = RootPaths(tmp_path / "runs").search("small")
    paths.folder.mkdir(parents=True)
    ledger = StudyLedger(paths.study_db, search, create=True)
    while (asked := ledger.ask()) is not None:
        session = ToySession(asked[1])
        session.train(100)
        ledger.tell(asked[0], Report(100, dict(session.evaluate()), Outcome.COMPLETE))
    code, out, _ = run("status", "small")
    assert code == 0
    assert out.splitlines()[-1].startswith("the space is exhausted: ")


def test_help_answers_at_once() -> None:
    """`--help` imports nothing heavy."""
    code = "import sys; sys.argv=['lorafront','--help']\nfrom lorafront.search.cli import main\ntry: main()\nexcept SystemExit: pass\nassert not {'torch','ray','optuna','mlflow','transformers','numpy'} & set(sys.modules)"  # noqa: E501
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("arguments", [("pareto",), ("run", "a.yaml", "--bogus"), ("nonsense",), ("ui", "--port", "x")])
def test_wrong_usage_exits_with_two(run: Run, arguments: tuple[str, ...]) -> None:
    """A missing argument, an unknown option or command, and a port that is no number exit with 2 and a usage line."""
    code, _, err = run(*arguments)
    assert code == 2
    assert "Usage:" in err


def test_front_as_json_csv_and_table(run: Run, toy_search: str) -> None:
    """JSON, CSV and table of the front name the same trials with the same values."""
    code, out, _ = run("pareto", toy_search, "--json")
    assert code == 0
    entries = json.loads(out)
    assert entries
    assert set(entries[0]) == {"trial", "params", "values", "peak_vram_source"}
    assert set(entries[0]["values"]) == {"perplexity", "peak_vram_gb"}
    rows = list(csv.DictReader(io.StringIO(run("pareto", toy_search, "--csv")[1])))
    assert [int(row["trial"]) for row in rows] == [entry["trial"] for entry in entries]
    assert [float(row["perplexity"]) for row in rows] == [entry["values"]["perplexity"] for entry in entries]
    table = run("pareto", toy_search)[1]
    assert all(f" {entry['trial']} " in table for entry in entries)
    assert max(map(len, table.splitlines())) <= 80


def test_best_under_a_limit(run: Run, toy_search: str, tmp_path: Path) -> None:
    """`--under` gives the best perplexity among those that fit, and exit code 4 where none does."""
    everything = json.loads(run("status", toy_search, "--json")[1])
    fitting = [row for row in everything if row["state"] == "COMPLETE" and row["measurements"]["peak_vram_gb"] <= 1]
    best = min(fitting, key=lambda row: row["measurements"]["perplexity"])
    code, out, _ = run("pareto", toy_search, "--under", "1GB", "--json", "--plot", str(tmp_path / "front.png"))
    assert [entry["trial"] for entry in json.loads(out)] == [best["trial"]]
    assert (tmp_path / "front.png").stat().st_size > 10_000
    assert code == 0
    assert run("pareto", toy_search, "--under", "1MB")[0] == 4
    assert run("pareto", toy_search, "--under", "lots")[0] == 2


def test_findings_for_people_and_programs(run: Run, toy_search: str) -> None:
    """The same sentences; of too few trials that there are too few."""
    code, out, _ = run("findings", toy_search, "--json")
    said = json.loads(out)
    assert (code, said["objective"]) == (0, "perplexity")
    told = run("findings", toy_search)[1]
    assert max(map(len, told.splitlines())) <= 80
    for one in said["findings"]:
        assert one["says"] in " ".join(told.split())
    assert said["about"] in " ".join(told.split())


def test_a_recommendation_for_people_and_programs(run: Run, toy_search: str) -> None:
    """The best that fits with its process, the same in both forms; exit code 4 where nothing fits, 2 for no size."""
    code, out, _ = run("recommend", toy_search, "--vram", "8GB", "--json")
    found = json.loads(out)["recommended"]
    assert (code, found["need_gib"] <= 8) == (0, True)
    told = run("recommend", toy_search, "--vram", "8GB")[1]
    assert told.startswith(f"take trial {found['trial']}: ")
    assert f"lorafront export toy --trial {found['trial']} --out DIR" in told
    assert max(map(len, told.splitlines())) <= 80
    assert run("recommend", toy_search, "--vram", "512MB")[0] == 4
    assert run("recommend", toy_search, "--vram", "lots")[0] == 2


def test_a_report_stands_where_it_was_asked_for(run: Run, toy_search: str, tmp_path: Path) -> None:
    """Else beside the study."""
    assert run("report", toy_search)[1].split()[:2] == ["runs/toy/report.html", "runs/toy/report.md"]
    assert run("report", toy_search, "--out", "there/r.html")[0] == 0
    for place in ("there", "x.md", "there/r.html/x.html"):
        assert run("report", toy_search, "--out", place)[0] == 2
    assert "<title>toy: lorafront report</title>" in (tmp_path / "there" / "r.html").read_text()
    assert (tmp_path / "there" / "r.md").read_text() == (tmp_path / "runs/toy/report.md").read_text()


def test_list_and_status(run: Run, toy_search: str) -> None:
    """`list` counts what `status` shows, failures with their reason included."""
    assert json.loads(run("list", "--json")[1])[0]["trials"] == 10
    code, out, _ = run("status", toy_search)
    assert code == 0
    assert "cuda oom" in out
    assert "ran out of GPU memory" in out
    assert "no search" in run("list", "--root", "elsewhere")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["stop", "toy"], 0, "no process runs toy, so there is nothing to stop"),
        (["stop", "toy", "--trial", "3"], 2, "trial 3 does not run: ran out of GPU memory"),
        (["stop", "toy", "--trial", "77"], 2, "trial 77 does not run: there is no trial of that number"),
        (["stop", "toy", "--trial", "3", "--now"], 2, "give --trial or --now"),
        (["extend", "toy"], 2, "say how much more"),
        (["extend", "toy", "--hours", "1"], 2, "budget.hours has no limit"),
        (["status", "toy"], 0, "the budget is spent: trials (10 of 10); more of it with: lorafront extend toy"),
    ],
)
def test_what_cannot_be_stopped_or_extended_is_said(
    run: Run, toy_search: str, arguments: list[str], code: int, words: str
) -> None:
    """A finished search has nothing to stop, and is extended only by limits that it has."""
    exit_code, out, err = run(*arguments)
    assert exit_code == code
    assert words in out + err


def test_doctor_for_people_and_programs(run: Run, toy_search: str) -> None:
    """The same findings and the same exit code: toy trials have no files."""
    code, out, err = run("doctor", toy_search, "--json")
    found = json.loads(out)
    assert (code, found["search"], err) == (6, "toy", "")
    assert found["findings"]
    told = run("doctor", toy_search)
    assert told[0] == code
    assert all(f"{one['what']}\n  fix: {one['fix']}\n" in told[1] for one in found["findings"])
    assert all(note in told[1].splitlines() for note in found["notes"])


@pytest.mark.parametrize(
    "command", ["list", "status", "pareto", "check", "plan", "run", "resume", "extend", "confirm", "compare",
                "recommend", "findings", "doctor"]
)  # fmt: skip
def test_every_table_has_json(run: Run, command: str) -> None:
    """Whatever prints a table takes `--json`."""
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "--json" in out


def test_help_ends_with_the_exit_codes(run: Run) -> None:
    """So that a script's author finds them."""
    told = " ".join(run("--help")[1].split())
    assert told.endswith("130 ended at once by a second signal, `lorafront resume` goes on as well.")


@pytest.mark.parametrize(
    ("line", "found"),
    [("status t", ["toy"]), ("status x", []), ("status --root elsewhere t", []), ("stat", ["status"]),
     ("export toy --o", ["--out"])],
)  # fmt: skip
def test_the_shell_completes_commands_options_and_names(
    toy_search: str, tmp_path: Path, line: str, found: list[str]
) -> None:
    """Names are those under the root; nothing else is printed, and nothing heavy imported."""
    words = f"lorafront {line}"
    code = "import sys; sys.argv=['lorafront']\nfrom lorafront.search.cli import main\ntry: main()\nfinally: assert not {'torch','ray','optuna','mlflow','pandas'} & set(sys.modules)"  # noqa: E501
    asked = {"_LORAFRONT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **asked},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (answer.stdout.split(), answer.stderr) == (found, "")


@pytest.mark.parametrize(
    "command", ["status", "pareto", "recommend", "findings", "report", "resume", "mlflow-sync", "stop", "extend"]
)
def test_unknown_search_is_bad_input(run: Run, toy_search: str, command: str) -> None:
    """A name that is not there exits with 2 and what is near; a name with path parts is no name."""
    code, _, err = run(command, "tony")
    assert code == 2
    assert "Did you mean 'toy'?" in err
    assert run(command, "../toy")[0] == 2


def test_init_writes_a_file_that_is_valid(run: Run, tmp_path: Path) -> None:
    """`init` writes a commented file that parses, and never over another file."""
    from lorafront.search.search_file import read_search_file

    assert run("init", "mine.yaml", "--model", "m", "--data", "d.jsonl", "--format", "question_answer")[0] == 0
    search = read_search_file(tmp_path / "mine.yaml")
    assert (search.name, search.data.format) == ("mine", "question_answer")
    assert run("init", "mine.yaml")[0] == 2
    assert run("init", "other.yaml", "--format", "nonsense")[0] == 2
    assert not (tmp_path / "other.yaml").exists()


MINE = """base_model: {model}
adapter: lora
datasets: [{{path: {data}, type: completion}}]
val_set_size: 8
sequence_len: 32
lora_r: 6
lora_alpha: 12
lora_target_modules: [q_proj, v_proj]
micro_batch_size: 4
max_steps: 8
learning_rate: 0.00003
bf16: auto
sample_packing: true
"""


def test_init_begins_with_a_recipe(run: Run, tmp_path: Path) -> None:
    """What has no counterpart is printed and stands in the file; what is asked for comes before the recipe."""
    from lorafront.search.search_file import read_search_file

    (tmp_path / "axolotl.yml").write_text(MINE.format(model="m", data="d.txt"))
    code, out, _ = run("init", "mine.yaml", "--from", "axolotl.yml", "--model", "other")
    assert code == 0
    assert out.splitlines()[0] == "axolotl.yml is read as a recipe of axolotl; what it trains is the baseline"
    assert out.splitlines()[-2:] == ["  sample_packing: true", "wrote mine.yaml; next: lorafront check mine.yaml"]
    assert "#   sample_packing: true" in (tmp_path / "mine.yaml").read_text()
    search = read_search_file(tmp_path / "mine.yaml")
    assert (search.model.name, search.data.path, search.data.eval_rows) == ("other", "d.txt", 8)
    code, _, err = run("init", "other.yaml", "--from", "mine.yaml")
    assert code == 2
    assert "mine.yaml is a search file already" in err
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.slow
def test_a_recipe_from_init_to_the_front(run: Run, ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """The search that `init` begins runs; the recipe is its first trial, and the front is compared with it."""
    (tmp_path / "axolotl.yml").write_text(MINE.format(model=TINY_LLAMA, data=text_file))
    assert run("init", "mine.yaml", "--from", "axolotl.yml")[0] == 0
    text = (tmp_path / "mine.yaml").read_text().replace("budget: {trials: 32}", "budget: {trials: 4}")
    text = text.replace("# train_rows: 2000      # without it all", "train_rows: 64").replace(
        "high: 0.001", "high: 0.02"
    )
    (tmp_path / "mine.yaml").write_text(text)
    code, out, err = run("check", "mine.yaml")
    assert code == 0, err
    assert "# start point baseline: r6 a12 query+value bf16 lr 3e-05" in out
    code, out, err = run("run", "mine.yaml")
    assert code == 0, err
    assert "baseline trial 0: perplexity" in out
    found = json.loads(run("status", "mine", "--json")[1])
    assert [trial["trial"] for trial in found if trial.get("baseline")] == [0]
    assert (found[0]["outcome"], found[0]["params"]["rank"], found[0]["rows"]) == ("complete", 6, 32)
    assert "baseline: r6 a12" in " ".join(run("status", "mine")[1].split())
    code, out, _ = run("pareto", "mine")
    assert "to baseline" in " ".join(out.split())
    assert "baseline trial 0: perplexity" in out.splitlines()[-1]
    for member in json.loads(run("pareto", "mine", "--json")[1]):
        own = found[0]["measurements"]["perplexity"]
        assert member["to_baseline"]["trial"] == 0
        percent = 100 * (member["values"]["perplexity"] / own - 1)
        assert member["to_baseline"]["percent"]["perplexity"] == pytest.approx(percent)
    assert run("export", "mine", "--out", "out", "--trial", "0")[0] == 0
    code, out, err = run(
        "init", "again.yaml", "--from", "out/trial-00000", "--data", str(text_file), "--format", "text"
    )
    assert code == 0, err
    assert "out/trial" not in out
    assert run("check", "again.yaml")[0] == 0


def test_check_prints_the_resolved_file(run: Run, text_file: Path, tmp_path: Path) -> None:
    """`check` prints a file that is valid itself, the size of the space, and leaves nothing behind."""
    from lorafront.search.search_file import read_search_file

    file = tmp_path / "search.yaml"
    file.write_text(f"name: ok\nmodel: {TINY_LLAMA}\ndata: {{path: {text_file}, max_length: 64}}\n")
    code, out, err = run("check", "search.yaml")
    assert code == 0, err
    assert "# space: 150 different discrete configurations, times continuous dropout, learning_rate" in out
    assert "# modules query+value: q_proj, v_proj" in out
    (tmp_path / "again.yaml").write_text(out)
    again, first = (read_search_file(tmp_path / name).space for name in ("again.yaml", "search.yaml"))
    assert again == first.model_copy(update={"bias": "none"})  # on a model without biases there is nothing to choose
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.yaml", "search.yaml"]
    code, told, _ = run("check", "search.yaml", "--json")
    facts = json.loads(told)
    assert (code, parse_search(facts["search"]).space) == (0, again)
    assert facts["space"] == {"configurations": 150, "continuous": ["dropout", "learning_rate"]}
    assert facts["modules"]["query+value"] == ["q_proj", "v_proj"]
    rows = facts["data"]["training"]
    assert f"# data: {rows['rows']} training rows ({rows['tokens']:,} tokens), " in out
    assert all(f"# note: {note}" in out for note in facts["notes"])


def test_all_problems_come_with_their_lines(run: Run, text_file: Path, tmp_path: Path) -> None:
    """Problems of model, data and modules are reported together, each with file, line, column and key."""
    (tmp_path / "search.yaml").write_text(
        f"name: bad\nmodel: {TINY_LLAMA}\ndata:\n  path: {text_file}\n  max_length: 4096\n"
        "space:\n  modules: [attention, q_prj]\n  rank: 1000\ntraining: {batch_size: 1}\n"
    )
    code, _, err = run("run", "search.yaml")
    assert code == 2
    lines = err.splitlines()
    assert lines[0].startswith("search.yaml:5:3  data.max_length: 4096 is more than the 512 positions")
    assert lines[1].startswith("search.yaml:7:24  space.modules[1]: 'q_prj' matches no linear module of this model.")
    assert "Did you mean 'q_proj'?" in lines[1]
    assert lines[2].startswith("search.yaml:8:3  space.rank[0]: rank 1000 exceeds min(in, out)")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["search.yaml"]


def test_a_taken_name_is_refused(run: Run, toy_search: str, tmp_path: Path) -> None:
    """A run under a taken name exits with 2 and says how to go on."""
    (tmp_path / "search.yaml").write_text("name: toy\nmodel: m\ndata: {path: d}\n")
    code, _, err = run("run", "search.yaml")
    assert code == 2
    assert "lorafront resume toy" in err


def test_unreadable_state_exits_with_six(run: Run, tmp_path: Path) -> None:
    """A damaged study exits with 6 and its path; nothing is started over."""
    folder = tmp_path / "runs" / "broken"
    folder.mkdir(parents=True)
    (folder / "study.db").write_bytes(b"x" * 5000)
    code, _, err = run("status", "broken")
    assert code == 6
    assert "study.db" in err
    assert run("resume", "broken")[0] == 6
    assert (folder / "study.db").read_bytes() == b"x" * 5000


def test_a_root_that_cannot_be_written_is_said(run: Run, text_file: Path, tmp_path: Path) -> None:
    """A root below a file exits with 2 before anything starts."""
    (tmp_path / "search.yaml").write_text(f"name: ok\nmodel: {TINY_LLAMA}\ndata: {{path: {text_file}}}\n")
    (tmp_path / "file").write_text("")
    code, _, err = run("run", "search.yaml", "--root", "file/runs")
    assert code == 2
    assert "cannot write" in err


def test_a_plan_in_every_form(run: Run, tmp_path: Path) -> None:
    """Table, JSON and CSV go to the output alone, and what the numbers are stands below them; a picture is drawn."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 2}))
    model = ("plan", "--model", ".", "--gpu", "2GB,1GB", "--batch", "2", "--length", "64")
    code, out, err = run(*model, "--plot", "plan.png")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "plot: plan.png"
    assert out.splitlines()[1].startswith(".: 53.6 M parameters; batch 2 x 64 tokens, adamw")
    assert "no GPU has measured" in out.splitlines()[-4]
    assert (tmp_path / "plan.png").stat().st_size > 0
    code, out, err = run(*model, "--json")
    found = json.loads(out)
    assert (code, [entry["gpu"] for entry in found["gpus"]]) == (0, ["1GB", "2GB"])
    assert "no GPU has measured" in found["notes"][0]
    assert found["notes"][0] in err
    code, out, err = run(*model, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [float(row["peak_vram_gb"]) for row in rows] == [row["peak_vram_gb"] for row in found["rows"]]
    assert "no GPU has measured" in err


def test_a_plan_of_a_file_says_where_the_file_is_wrong(run: Run, tmp_path: Path) -> None:
    """With line and column, as `check` does; a model that there is not with what is shipped."""
    (tmp_path / "x.yaml").write_text(f"name: x\nmodel: {TINY_LLAMA}\ndata: {{path: no.txt}}\n")
    code, _, err = run("plan", "x.yaml")
    assert code == 2
    assert err.startswith("x.yaml:3:8  data.path: no.txt does not exist")
    code, _, err = run("plan", "--model", "./llama-3.1-8b")
    assert code == 2
    assert "model: ./llama-3.1-8b does not exist" in err
    assert "Shipped architectures: bert-base, gpt2" in err
    assert run("plan")[0] == 2


def test_a_file_that_asks_for_it_is_confirmed_when_its_search_has_ended(
    ray_session: None, run: Run, text_file: Path, tmp_path: Path
) -> None:
    """`confirm: 2` is two seeds each; `resume` of the replicates and a second `confirm` find nothing to do."""
    (tmp_path / "asks.yaml").write_text(
        f"name: asks\nmodel: {TINY_LLAMA}\ndata: {{path: {text_file}, max_length: 32, train_rows: 64, eval_rows: 8}}\n"
        "space: {rank: [2, 4], quantization: bf16, modules: attention, bias: none}\nbudget: {trials: 3}\nconfirm: 2\n",
        encoding="utf-8",
    )
    code, out, err = run("run", "asks.yaml", "--engine", "toy")
    assert code == 0, err
    assert "trained again with other seeds" in out
    shown = json.loads(run("pareto", "asks", "--confirmed", "--json")[1])
    assert shown["kept"]
    assert all(entry["seeds"] == 2 for entry in shown["kept"])
    own = read_study(Path("runs/asks-confirm/study.db"))
    assert run("resume", "asks-confirm", "--engine", "toy")[0] == 0
    code, out, err = run("resume", "asks", "--engine", "toy", "--json")
    ended = json.loads(out)
    assert (code, ended["search"], ended["trials"], ended["confirmed"]) == (0, "asks", 3, shown)
    assert ended["front"] == json.loads(run("pareto", "asks", "--json")[1])
    assert "search asks-confirm: " in err
    assert json.loads(run("confirm", "asks", "--engine", "toy", "--json")[1]) == shown
    assert read_study(Path("runs/asks-confirm/study.db")).trials == own.trials


def test_what_would_be_elsewhere_is_refused(run: Run) -> None:
    """A folder of this machine means nothing on a cluster, and a picture would be written there."""
    assert run("status", "s", "--root", "here", "--address", "http://127.0.0.1:1")[::2] == (
        2, "--root is of this machine; a cluster's root is what LORAFRONT_ROOT says there\n",
    )  # fmt: skip
    code, _, errors = run("pareto", "s", "--plot", "front.png", "--address", "http://127.0.0.1:1")
    assert (code, "--plot writes a file" in errors) == (2, True)
    code, _, errors = run("resume")
    assert (code, "name the search" in errors) == (2, True)


def test_a_cluster_that_is_away_is_one_line(run: Run) -> None:
    """With what to look at."""
    pytest.importorskip("aiohttp", reason="needs ray[default]")
    code, out, errors = run("list", "--address", "http://127.0.0.1:1")
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert "http://127.0.0.1:1 does not answer" in errors


def test_a_file_is_refused_before_a_cluster_is_asked(run: Run, tmp_path: Path) -> None:
    """One that names what is not there, with the place in it."""
    (tmp_path / "x.yaml").write_text("name: x\nmodel: org/model\ndata: {path: rows.jsonl}\n")
    code, out, errors = run("submit", "x.yaml", "--address", "http://127.0.0.1:1")
    assert (code, out) == (2, "")
    assert errors.startswith("x.yaml:3:8  data.path: rows.jsonl is neither in ")
