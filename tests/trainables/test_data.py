"""Rows to token batches: the split, the order, the mask, the cache, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import SHARED_DATA

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.causal_lm import CAUSAL_LM, IGNORE
from lorafront.trainables.config import DataConfig, ModelConfig
from lorafront.trainables.data import TokenData, TokenRows, load, prepare, row_order, seeded_generator, store
from lorafront.trainables.models import load_tokenizer
from lorafront.trainables.row_sets import read_sets

Prepare = Callable[..., TokenData]


@pytest.fixture
def prepared(tiny_model: ModelConfig, tmp_path: Path) -> Prepare:
    tokenizer = load_tokenizer(tiny_model)

    def run(path: Path | str, **options: Any) -> TokenData:
        config = DataConfig(path=str(path), **{"max_length": 64, **options})
        return prepare(
            read_sets(config, CAUSAL_LM), config, CAUSAL_LM, tokenizer, tmp_path / "tokens", train_batch=2, eval_batch=2
        )[1]

    return run


def texts(tokens: TokenRows, model: ModelConfig) -> list[str]:
    tokenizer = load_tokenizer(model)
    return [tokenizer.decode(tokens.row(i)[0]) for i in range(len(tokens))]


def test_split_is_seeded_disjoint_and_whole(prepared: Prepare, qa_file: Path, tiny_model: ModelConfig) -> None:
    """Training and evaluation share no row, together they are all rows, and the same seed splits the same way."""
    first, again = prepared(qa_file, format="question_answer"), prepared(qa_file, format="question_answer")
    other = prepared(qa_file, format="question_answer", split_seed=1)
    train, held_out = texts(first.train, tiny_model), texts(first.evaluation, tiny_model)
    assert len(held_out) == 4
    assert not set(train) & set(held_out)
    assert len({*train, *held_out}) == 40
    assert texts(again.evaluation, tiny_model) == held_out
    assert set(texts(other.evaluation, tiny_model)) != set(held_out)


def test_prompt_is_masked(prepared: Prepare, qa_file: Path, tiny_model: ModelConfig) -> None:
    """Only the answer and the end token are targets; labels of the prompt and of the padding are ignored."""
    data = prepared(qa_file, format="question_answer")
    batch = CAUSAL_LM.collate(data.train, range(4), data.pad_id)
    tokenizer = load_tokenizer(tiny_model)
    for labels, ids, mask in zip(batch["labels"], batch["input_ids"], batch["attention_mask"], strict=True):
        trained = tokenizer.decode(labels[labels != IGNORE])
        assert trained.startswith("It is ")
        assert trained.endswith(".<|endoftext|>")
        assert (labels[mask == 0] == IGNORE).all()
        assert "Question:" in tokenizer.decode(ids)
    assert CAUSAL_LM.targets(batch) == int((batch["labels"] != IGNORE).sum())


def test_packed_text_loses_nothing(prepared: Prepare, tmp_path: Path, tiny_model: ModelConfig) -> None:
    """Blocks of plain text have max_length tokens but for the last, and hold every token of the text."""
    file = tmp_path / "a.txt"
    file.write_text("\ufeff" + "The first line.\r\nThe second one, with words.\n" * 20, encoding="utf-8")
    data = prepared(file, max_length=16, eval_rows=2)
    lengths = [*data.train.lengths, *data.evaluation.lengths]
    stream = load_tokenizer(tiny_model)("The first line.\nThe second one, with words.\n" * 20)["input_ids"]
    assert sum(lengths) == len(stream) + 1
    assert sorted(lengths)[1:] == [16] * (len(lengths) - 1)


def test_eval_path_and_named_splits(prepared: Prepare, qa_file: Path, tmp_path: Path) -> None:
    """A split that is named is used as it is: by `eval_path`, or by the names of a folder's files."""
    folder = tmp_path / "folder"
    folder.mkdir()
    row = json.dumps({"question": "Who?", "answer": "Nobody."})
    (folder / "train.jsonl").write_text(qa_file.read_text())
    (folder / "valid.jsonl").write_text(f"{row}\n{row}\n{row}\n")
    by_folder = prepared(folder, format="question_answer")
    by_path = prepared(qa_file, eval_path=str(folder / "valid.jsonl"), format="question_answer")
    assert (len(by_folder.train), len(by_folder.evaluation)) == (40, 3)
    assert (len(by_path.train), len(by_path.evaluation)) == (40, 3)


def test_what_is_only_evaluated_gives_its_evaluation_split(prepared: Prepare, qa_file: Path, tmp_path: Path) -> None:
    """A folder with splits as `eval_path` or second set is never evaluated on the rows that it trains on."""
    folder = tmp_path / "data"
    folder.mkdir()
    row = json.dumps({"question": "Who?", "answer": "Nobody."})
    (folder / "train.jsonl").write_text(qa_file.read_text())
    (folder / "valid.jsonl").write_text(f"{row}\n{row}\n{row}\n")
    also = {"data": str(folder), "other": str(folder)}
    data = prepared(folder, eval_path=str(folder), also_evaluate=also, format="question_answer")
    assert [len(rows) for rows in (data.train, data.evaluation, *data.also.values())] == [40, 3, 3, 3]


def test_cache_file_gives_back_what_went_in(tiny_model: ModelConfig, qa_file: Path, tmp_path: Path) -> None:
    """A stored cache loads to the same arrays, and changed rows get another file."""
    tokenizer = load_tokenizer(tiny_model)
    mine = tmp_path / "mine.jsonl"
    mine.write_text(qa_file.read_text())
    config = DataConfig(path=str(mine), format="question_answer", max_length=24)
    file, data = prepare(
        read_sets(config, CAUSAL_LM), config, CAUSAL_LM, tokenizer, tmp_path, train_batch=1, eval_batch=1
    )
    assert not file.exists()
    store(file, data)
    loaded = load(file)
    assert np.array_equal(loaded.train.ids, data.train.ids)
    assert np.array_equal(loaded.evaluation.targets, data.evaluation.targets)
    assert (loaded.pad_id, loaded.notes) == (data.pad_id, data.notes)
    mine.write_text(qa_file.read_text().replace("It is 4.", "It is 5."))
    assert (
        prepare(read_sets(config, CAUSAL_LM), config, CAUSAL_LM, tokenizer, tmp_path, train_batch=1, eval_batch=1)[0]
        != file
    )


@given(st.integers(1, 50), st.integers(0, 1000))
def test_row_order_visits_every_row_once_an_epoch(rows: int, seed: int) -> None:
    """Each epoch is a permutation of all rows, and the order depends on the seed alone."""
    order = list(islice(row_order(rows, seed), 3 * rows))
    assert all(sorted(order[e * rows : (e + 1) * rows]) == list(range(rows)) for e in range(3))
    assert order == list(islice(row_order(rows, seed), 3 * rows))


def test_seeded_generators_differ_by_word() -> None:
    """Two purposes never share random numbers."""
    assert seeded_generator(0, "a").random() != seeded_generator(0, "b").random()


BAD_FILES = [
    ("empty.txt", b"", "text", "has 0 rows"),
    ("empty.jsonl", b"\n\n", "question_answer", "has 0 rows"),
    ("latin.txt", "caf\u00e9 au lait".encode("latin-1"), "text", "not UTF-8: byte 0xe9 at offset 3"),
    ("latin.jsonl", b'{"a": "\xff"}', "question_answer", "not UTF-8"),
    ("binary.txt", b"abc\0def", "text", "NUL byte at offset 3"),
    ("broken.jsonl", b'{"question": "a", "answer": "b"}\n{"question": \n', "question_answer", "line 2"),
    ("list.jsonl", b"[1, 2]\n", "question_answer", "line 1: expected a JSON object"),
    ("column.jsonl", b'{"question": "a", "reply": "b"}\n', "question_answer", "lacks; it has question, reply"),
    ("null.jsonl", b'{"question": "a", "answer": null}\n', "question_answer", "row 1"),
    ("type.jsonl", b'{"question": "a", "answer": "b"}\n{"question": 5, "answer": "b"}\n', "question_answer", "got 5"),
    ("few.jsonl", b'{"question": "a", "answer": "b"}\n', "question_answer", "1 training rows"),
    (
        "long.jsonl",
        json.dumps({"question": "why " * 200, "answer": "b"}).encode(),
        "question_answer",
        "0 training rows",
    ),
]


@pytest.mark.parametrize(("name", "content", "row_format", "words"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_bad_data_is_refused_with_its_place(
    prepared: Prepare, tmp_path: Path, name: str, content: bytes, row_format: str, words: str
) -> None:
    """Data that would train nonsense is refused, saying where and what."""
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        prepared(file, format=row_format)
    assert words in str(caught.value)
    assert all(problem.path[0] == "data" for problem in caught.value.problems)


@pytest.mark.parametrize("name", ["missing.txt", "./missing", "/nowhere/at/all", "a/b/c"])
def test_a_missing_path_never_becomes_a_download(prepared: Prepare, name: str) -> None:
    """What has the form of a path and is not there is an error that names the current folder."""
    with pytest.raises(InvalidInput, match="does not exist"):
        prepared(name)


def test_csv_and_parquet_are_read(prepared: Prepare, tmp_path: Path) -> None:
    """Tables give the same rows as JSON lines of the same content."""
    import pandas as pd

    frame = pd.DataFrame({"prompt": [f"Say {i}" for i in range(12)], "completion": [f"{i}!" for i in range(12)]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    loaded = [
        prepared(tmp_path / f"rows.{kind}", format="prompt_completion", eval_rows=3)
        for kind in ("csv", "parquet", "jsonl")
    ]
    assert all(np.array_equal(data.train.ids, loaded[0].train.ids) for data in loaded[1:])


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared data sets are not beside the project")
def test_real_instruction_data(prepared: Prepare) -> None:
    """GSM8K loads as question and answer, and tells how many rows max_length left without a target."""
    data = prepared(
        SHARED_DATA / "gsm8k" / "train.jsonl", format="question_answer", max_length=128, train_rows=200, eval_rows=20
    )
    assert len(data.train) + len(data.evaluation) < 220
    assert "rows dropped" in data.notes[0]


@given(st.integers(1, 60), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_part_of_the_rows_is_nested(rows: int, one: float, other: float):
    """A smaller share is a part of a larger one; no share gives less than the least, and all of them are whole rows."""
    whole = TokenRows.build([(list(range(row, 2 * row + 1)), row) for row in range(rows)])
    small, large = (whole.part(share, least=5) for share in sorted((one, other)))
    as_rows = [{(*part.row(i)[0], part.row(i)[1]) for i in range(len(part))} for part in (small, large, whole)]
    assert as_rows[0] <= as_rows[1] <= as_rows[2]
    assert len(small) == max(min(5, rows), math.ceil(rows * min(one, other)))
    assert whole.part(1) is whole
