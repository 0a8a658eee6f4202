"""Candidates side by side on prompts: each says what stock PEFT would say, in the words that it was trained with."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from support import PROJECT, TINY_LLAMA
from trained_alone import Trained, trained_alone
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lorafront.search import load
from lorafront.search.answers import Generations
from lorafront.search.cli import main
from lorafront.search.export import export_front
from lorafront.search.generations import Asked, generations
from lorafront.search.paths import SearchPaths
from lorafront.search.recommendation import Recommendation, recommend
from lorafront.search.search_file import parse_search
from lorafront.search.study_table import StudyTable
from lorafront.spaces.errors import CheckpointInvalid, InvalidInput, StateUnreadable
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.prompts import Prompt

Searched = tuple[StudyTable, SearchPaths, Recommendation]
SPACE = {"rank": 4, "alpha": 8, "modules": "query+value", "quantization": "nf4", "dropout": 0.1, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def answers(answered: Trained) -> Searched:
    """Both trials are candidates, whichever the front has."""
    table, paths, _ = answered
    first, second = table.complete
    return table, paths, replace(recommend(table), trial=first, better=second, cheaper=None)


def search_of(folder: Path, bases: BaseCache, **changes: Any) -> Searched:
    """One trial on another task."""
    search = parse_search(
        {
            "name": "other", "space": SPACE, "training": {"rows": 16, "rungs": 1, "batch_size": 4},
            "budget": {"trials": 1}, "sampler": "grid", "start_points": {"recommended": False}, **changes,
        }
    )  # fmt: skip
    table, paths, _ = trained_alone(search, folder, bases)
    return table, paths, recommend(table)


@pytest.fixture(scope="module")
def spoken(answers: Searched) -> Generations:
    table, paths, found = answers
    return generations(found, table, paths, Asked("eval", ["What is 50 plus 50?"], 8))


def alone(folder: Path, prompt: str) -> str:
    """What stock PEFT generates from an exported folder."""
    quantized = folder / "bitsandbytes_config.json"
    bits = BitsAndBytesConfig(**json.loads(quantized.read_text())) if quantized.is_file() else None
    base = AutoModelForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.bfloat16, quantization_config=bits)
    tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMA)
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # another kernel, with other rounding; trials do without it
    model = PeftModel.from_pretrained(base, folder).eval()
    asked = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    said = model.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :]
    return str(tokenizer.decode(said, skip_special_tokens=True))


def test_each_candidate_says_what_stock_peft_says(answers: Searched, spoken: Generations, tmp_path: Path) -> None:
    """Asked in the template of the training rows, from the folder that an export writes."""
    table, paths, _ = answers
    folders = export_front(paths, tmp_path / "out", [trial.number for trial in table.complete])
    told = spoken.said[2]
    assert [candidate.label for candidate in spoken.candidates] == ["base nf4", "take: trial 0", "better: trial 1"]
    for folder, said in zip(folders, told[1:], strict=True):
        assert said is not None
        assert said.text == alone(folder, "Question: What is 50 plus 50?\nAnswer: ")
    assert told[1] != told[0]


def test_evaluation_rows_are_asked_with_their_answers(spoken: Generations, qa_file: Path) -> None:
    """Two of them, each beside what its row says; a single prompt has none."""
    raw = [json.loads(line) for line in qa_file.read_text().splitlines()]
    rows = {f"Question: {row['question']}\nAnswer: ": row["answer"] for row in raw}
    assert len(spoken.prompts) == 3
    for prompt in spoken.prompts[:2]:
        assert prompt.answer == rows[prompt.shown]
    assert (spoken.prompts[2].shown, spoken.prompts[2].answer) == ("What is 50 plus 50?", None)


def test_they_say_the_same_again_whoever_spoke_before(answers: Searched, spoken: Generations) -> None:
    """Adapters leave no trace on a base, and nothing is drawn."""
    table, paths, found = answers
    turned = replace(found, trial=found.better, better=found.trial)
    again = generations(turned, table, paths, Asked("", ["What is 50 plus 50?"], 8))
    first, second = spoken.said[2][1:]
    assert again.said[0][1:] == (second, first)


def test_a_file_holds_lines_or_rows(answers: Searched, tmp_path: Path) -> None:
    """Lines, rows with a prompt, and rows of the format ask the same; progress counts every answer."""
    table, paths, found = answers
    (tmp_path / "lines.txt").write_text("\nWhat is 3 plus 3?\n")
    row = {"question": "What is 3 plus 3?"}
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(map(json.dumps, [{"prompt": row["question"]}, row, {**row, "answer": "6"}]))
    )
    seen: list[tuple[int, int]] = []
    one = generations(found, table, paths, Asked(str(tmp_path / "lines.txt"), (), 4))
    other = generations(found, table, paths, Asked(str(tmp_path / "rows.jsonl"), (), 4), lambda *at: seen.append(at))
    assert {prompt.ids for prompt in (*one.prompts, *other.prompts)} == {one.prompts[0].ids}
    assert set(other.said) == set(one.said)
    assert [prompt.answer for prompt in other.prompts] == [None, None, "6"]
    assert seen == [(done, 9) for done in range(1, 10)]


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ("\n \n", "p.txt", "holds no prompt; write one into each line"),
        ("", "p.jsonl", "holds no prompt"),
        ('{"text": "x"}', "p.jsonl", r"row 1 of .*: column 'question' must be text \(got None\)"),
        ("{", "p.jsonl", "malformed JSON"),
        ("word " * 600, "p.txt", r"prompt 1 has \d+ tokens, and with 60 new ones .* too few positions \(512\)"),
        (None, "p.txt", "is no file; give one, or eval"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(
    answers: Searched, tmp_path: Path, content: str | None, name: str, words: str
) -> None:
    """With the file, the row and what to do; before any base is loaded."""
    table, paths, found = answers
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match=words):
        generations(found, table, paths, Asked(str(tmp_path / name)))


def test_an_adapter_that_is_gone_or_cut_is_named(answers: Searched, tmp_path: Path) -> None:
    """Without it there is nothing to generate with."""
    table, paths, found = answers
    copy = SearchPaths(Path(shutil.copytree(paths.folder, tmp_path / paths.name)))
    weights = next((copy.trials / "00000").glob("*/ckpt-*/adapter/adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointInvalid, match="was cut or changed"):
        generations(found, table, copy, Asked("", ["x"]))
    weights.unlink()
    with pytest.raises(StateUnreadable, match="trial 0 has no adapter any more"):
        generations(found, table, copy, Asked("", ["x"]))


def test_a_block_fits_a_narrow_terminal(spoken: Generations) -> None:
    """A line for each candidate, wrapped at 80 columns; JSON has the same words."""
    console = Console(width=80, record=True, file=io.StringIO())
    for block in spoken.blocks():
        console.print(block)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for wanted in ("> What is 50 plus 50?", "base nf4", "take: trial 0", "better: trial 1", "the row's own"):
        assert wanted in text
    said = spoken.as_json()
    assert [entry["prompt"] for entry in said] == [prompt.shown for prompt in spoken.prompts]
    assert [one["text"] for one in said[2]["answers"]] == [one.text for one in spoken.said[2] if one]
    hostile = replace(spoken, prompts=(Prompt("\x1b[2J[bold]", (1,)),), said=spoken.said[:1])
    with console.capture() as drawn:
        console.print(next(hostile.blocks()))
    assert "\x1b" not in drawn.get()
    assert "[bold]" in drawn.get()


def test_a_recommendation_is_printed_with_answers_and_for_another_batch(
    answers: Searched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 80 columns and as JSON; from Python the same as a frame."""
    _, paths, _ = answers
    given = ["recommend", paths.name, "--root", str(paths.folder.parent), "--prompt", "What is 3 plus 3?"]
    monkeypatch.setenv("COLUMNS", "80")

    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lorafront", *given, "--tokens", "4", "--batch", "8", *more])
        with pytest.raises(SystemExit, match="0"):
            main()
        return capsys.readouterr().out

    told, said = run(), json.loads(run("--json"))
    assert max(map(len, told.splitlines()[:-1])) <= 80  # the last names a folder
    assert "memory with 8 rows a pass is predicted" in told
    assert "> What is 3 plus 3?" in told
    assert (said["batch"]["rows_per_pass"], said["recommended"]["peak_vram_source"]) == (8, "predicted")
    results = load(paths.name, paths.folder.parent)
    assert results.recommend(batch=8).trial.number == said["recommended"]["trial"]
    frame = results.generations(["What is 3 plus 3?"], 4, results.recommend(batch=8))
    (entry,) = said["generations"]
    assert [one["text"] for one in entry["answers"]] == list(frame.loc["What is 3 plus 3?"])


@pytest.mark.slow
def test_a_classifier_says_its_label_and_how_likely_it_is(bases: BaseCache, tmp_path: Path) -> None:
    """As often right as was measured; the bare base has no head for new labels, and says nothing."""
    rows = [
        {"text": f"a {word} film, number {i}", "label": word} for i in range(30) for word in ("dull", "so-so", "fine")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"path": "rows.jsonl", "format": "text_label", "max_length": 32, "eval_rows": 30}
    table, paths, found = search_of(
        tmp_path, bases, model=str(PROJECT / "examples/tiny-bert"), task="seq_cls", data=data,
        space={**SPACE, "bias": "all"}, objectives=["accuracy", "peak_vram_gb"],
    )  # fmt: skip
    spoken = generations(found, table, paths, Asked(str(tmp_path / "rows.jsonl"), ["a fine film"]))
    answered = [(prompt.answer, said[1]) for prompt, said in zip(spoken.prompts, spoken.said, strict=True)]
    assert all(said and 1 / 3 <= (said.probability or 0) <= 1 for _, said in answered)
    assert {said[0] for said in spoken.said} == {None}
    right = [said.text == answer for answer, said in answered if said and answer]
    assert (len(right), answered[-1][0]) == (90, None)
    assert sum(right) / 90 == pytest.approx(found.trial.measurements["accuracy"], abs=0.25)


@pytest.mark.slow
def test_an_encoder_decoder_answers_what_it_reads(bases: BaseCache, tmp_path: Path) -> None:
    """The prompt is not repeated, and the start token is none of the answer."""
    rows = [{"asked": f"What follows {i}?", "completion": f"{i + 1} follows."} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"path": "rows.jsonl", "format": "prompt_completion", "columns": {"prompt": "asked"}, "max_length": 32}
    table, paths, found = search_of(
        tmp_path, bases, model=str(PROJECT / "examples/tiny-t5"), task="seq_2_seq_lm", data=data
    )
    (tmp_path / "p.jsonl").write_text(json.dumps({"asked": "What follows 7?"}))
    spoken = generations(found, table, paths, Asked("eval", ["What follows 7?"], 6))
    again = generations(found, table, paths, Asked(str(tmp_path / "p.jsonl"), (), 6))
    assert spoken.prompts[2] == again.prompts[0]
    assert all(prompt.answer and prompt.answer.endswith("follows.") for prompt in spoken.prompts[:2])
    assert all(prompt.shown.startswith("What follows") for prompt in spoken.prompts)
    assert not any("What" in said[1].text for said in spoken.said if said[1])
    assert spoken.said[2] == again.said[0]
