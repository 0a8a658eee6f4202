"""Formats of rows: what is trained on, whose columns they are, chats, labels, and formats of the user's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.causal_lm import CAUSAL_LM, IGNORE
from lorafront.trainables.config import DataConfig, ModelConfig
from lorafront.trainables.data import TokenData, prepare
from lorafront.trainables.models import load_tokenizer
from lorafront.trainables.row_sets import read_sets
from lorafront.trainables.seq_2_seq_lm import SEQ_2_SEQ_LM
from lorafront.trainables.seq_cls import SEQ_CLS
from lorafront.trainables.task import Task

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Prepare = Callable[..., TokenData]


@pytest.fixture
def tokenizer(tiny_model: ModelConfig) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_model)


@pytest.fixture
def prepared(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Prepare:
    def run(rows: list[dict[str, Any]], task: Task = CAUSAL_LM, **options: Any) -> TokenData:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        data = DataConfig(path=str(path), **{"max_length": 64, "eval_rows": 2, **options})
        raw = read_sets(data, task, tmp_path)
        return prepare(raw, data, task, tokenizer, tmp_path / "tokens", train_batch=1, eval_batch=1)[1]

    return run


def first(data: TokenData, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """(what is read, what is trained on) of the first row."""
    ids, target = data.train.row(0)
    return tokenizer.decode(ids[:target]), tokenizer.decode(ids[target:])


def test_a_chat_is_trained_on_its_last_answer(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer's own template frames every turn once; all before the last answer is masked."""
    tokenizer.chat_template = CHATML
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Two?"), ("assistant", "2")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}] * 4
    prompt, answer = first(prepared(rows, format="messages", max_length=256), tokenizer)
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    assert prompt.endswith("Two?<|im_end|>\n<|im_start|>assistant\n")
    assert answer == "2<|im_end|>\n"


def test_a_chat_needs_a_template_and_an_answer(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    """No template, a last turn of the user, or turns that are none are refused with the reason."""
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(InvalidInput, match=r"data\.format.*no chat template"):
        prepared([good] * 4, format="messages")
    tokenizer.chat_template = CHATML
    for wrong, words in (
        ({"messages": good["messages"][::-1]}, "row 2 .* must end with a message of the assistant"),
        ({"messages": [{"role": "user"}, {"role": "assistant"}]}, "row 2 .* role and content"),
        ({"messages": good["messages"][1:]}, "row 2 .* must be a list of two or more messages"),
        ({"messages": "hello"}, "row 2 .* must be a list of two or more messages"),
    ):
        with pytest.raises(InvalidInput, match=words):
            prepared([good, wrong, good], format="messages")


def test_columns_and_header_name_what_the_data_calls_otherwise(
    prepared: Prepare, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """`columns` renames, `header` names the columns of a file without a header line; both give the same rows."""
    rows = [{"question": f"How many are {i}?", "answer": f"{i}."} for i in range(6)]
    plain = first(prepared(rows, format="question_answer"), tokenizer)
    renamed = [{"ask": row["question"], "say": row["answer"]} for row in rows]
    columns = {"question": "ask", "answer": "say"}
    assert first(prepared(renamed, format="question_answer", columns=columns), tokenizer) == plain
    bare = tmp_path / "bare.tsv"
    with bare.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows(row.values() for row in rows)
    data = DataConfig(path=str(bare), format="question_answer", header=["question", "answer"], eval_rows=2)
    assert read_sets(data, CAUSAL_LM).main.rows == rows


@pytest.mark.parametrize(
    ("options", "place", "words"),
    [
        ({"columns": {"question": "asks"}}, "data.columns.question", "no column 'asks'.* Did you mean 'ask'"),
        (
            {"columns": {"questoin": "ask"}},
            "data.columns.questoin",
            "no column of this format.* Did you mean 'question'",
        ),
        ({}, "data.path", "needs column 'question', which .* it has ask, answer"),
        ({"header": ["question", "answer"]}, "data.header", "only CSV and TSV"),
    ],
)
def test_wrong_columns_are_refused_with_those_there_are(
    prepared: Prepare, options: dict[str, Any], place: str, words: str
) -> None:
    """A column that is not there is named, with what there is and the nearest name."""
    with pytest.raises(InvalidInput, match=words) as caught:
        prepared([{"ask": "a", "answer": "b"}] * 4, format="question_answer", **options)
    assert str(caught.value).startswith(f"{place}:")


def test_labels_are_the_same_in_every_file_format(prepared: Prepare, tmp_path: Path) -> None:
    """Numbers, and the same numbers as text in a CSV file, are the same labels; numbers go by size."""
    rows = [{"text": f"row {i}", "label": [10, 2, 0][i % 3]} for i in range(12)]
    data = prepared(rows, SEQ_CLS, format="text_label")
    assert data.labels == ("0", "2", "10")
    assert set(data.train.targets) == {0, 1, 2}
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *(row.values() for row in rows)])
    table = read_sets(DataConfig(path=str(tmp_path / "rows.csv"), format="text_label"), SEQ_CLS)
    assert SEQ_CLS.labels([(row["text"], str(row["label"])) for row in table.main.rows]) == data.labels


def test_a_quotation_mark_in_a_tsv_file_is_a_character(tmp_path: Path) -> None:
    """A lone quotation mark does not swallow the lines that follow it."""
    (tmp_path / "rows.tsv").write_text('text\tlabel\n"a\t0\nb"\t1\n', encoding="utf-8")
    rows = read_sets(DataConfig(path=str(tmp_path / "rows.tsv"), format="text_label"), SEQ_CLS).main.rows
    assert [row["text"] for row in rows] == ['"a', 'b"']


def test_prompt_and_completion_go_to_encoder_and_decoder(prepared: Prepare, tokenizer: PreTrainedTokenizerBase) -> None:
    """For sequence to sequence the prompt is the input, and the completion with its end token the labels."""
    rows = [{"prompt": f"number {i}", "completion": "is here"} for i in range(4)]
    data = prepared(rows, SEQ_2_SEQ_LM, format="prompt_completion")
    batch = SEQ_2_SEQ_LM.collate(data.train, [0, 1], data.pad_id)
    assert tokenizer.decode(batch["input_ids"][0]).startswith("number ")
    labels = batch["labels"][0]
    assert tokenizer.decode(labels[labels != IGNORE]) == "is here<|endoftext|>"
    assert SEQ_2_SEQ_LM.targets(batch) == 2 * int((labels != IGNORE).sum())


@pytest.mark.parametrize("task", [SEQ_CLS, SEQ_2_SEQ_LM], ids=["seq_cls", "seq_2_seq_lm"])
def test_plain_text_is_refused_where_an_answer_is_needed(prepared: Prepare, task: Task) -> None:
    """Text alone has neither a label nor a completion."""
    with pytest.raises(InvalidInput, match=r"data\.format: format text has nothing but text"):
        prepared([{"text": "a"}] * 4, task, format="text")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a", "label": 1}] * 6, "all 6 rows have the same label '1'"),
        ([{"text": "a", "label": i} for i in range(9)], "9 different labels in 9 rows: is that the column"),
        ([{"text": "a", "label": 0.5}] * 6, "row 1 .* column 'label' must be a label"),
        ([{"text": "a", "label": None}] * 6, "row 1 .* column 'label' must be a label"),
        ([{"text": "a", "label": ""}] * 6, "row 1 .* column 'label' must be a label"),
        ([{"text": None, "label": 1}] * 6, "row 1 .* column 'text' must be text"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(prepared: Prepare, rows: list[dict[str, Any]], words: str) -> None:
    """One label only, as many as rows, and values that name no class."""
    with pytest.raises(InvalidInput, match=words):
        prepared(rows, SEQ_CLS, format="text_label")


def test_a_label_that_only_the_evaluation_has_is_refused(prepared: Prepare, tmp_path: Path) -> None:
    """A class that is never trained cannot be evaluated; its row is named."""
    (tmp_path / "eval.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 7}\n')
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(8)]
    with pytest.raises(InvalidInput, match=r"data\.eval_path: row 2 of .* has label '7'; the training rows have 0, 1"):
        prepared(rows, SEQ_CLS, format="text_label", eval_path=str(tmp_path / "eval.jsonl"))


OWN_FORMAT = """
from lorafront.trainables.formats import RowFormat, text
CODE = RowFormat({"docstring": text, "code": text}, lambda row, tokenizer: (row["docstring"] + "%s", row["code"]))
"""


def test_a_format_of_the_users_own(
    prepared: Prepare, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`module:name` beside the search file is a format like those that come with the package."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_format.py").write_text(OWN_FORMAT % " =>")
    rows = [{"docstring": "Add.", "code": "a + b"}] * 4
    assert first(prepared(rows, format="own_format:CODE"), tokenizer) == ("Add. =>", "a + b<|endoftext|>")
    with pytest.raises(InvalidInput, match=r"data\.format: module own_format has no 'COD'.* Did you mean 'CODE'"):
        prepared(rows, format="own_format:COD")
    with pytest.raises(InvalidInput, match=r"must be a lorafront\.trainables\.formats\.RowFormat"):
        prepared(rows, format="own_format:text")
    with pytest.raises(InvalidInput, match=r"no_such_module cannot be imported .*ModuleNotFoundError"):
        prepared(rows, format="no_such_module:X")


def test_a_very_long_line_is_read_in_pieces(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A line of a megabyte gives the tokens of its text: pieces are cut where words are."""
    words = "word " * 60_000
    (tmp_path / "long.txt").write_text(words, encoding="utf-8")
    data = DataConfig(path=str(tmp_path / "long.txt"), max_length=128, eval_rows=1)
    raw = read_sets(data, CAUSAL_LM)
    tokens = prepare(raw, data, CAUSAL_LM, tokenizer, tmp_path, train_batch=1, eval_batch=1)[1]
    found = int(tokens.train.offsets[-1] + tokens.evaluation.offsets[-1])
    whole = len(tokenizer(words, verbose=False)["input_ids"]) + 1
    assert abs(found - whole) <= 3  # a piece may begin with a blank
