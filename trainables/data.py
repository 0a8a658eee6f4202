"""Rows to token batches: split, encode, cache, batch.

Everything is seeded and counted in rows: trials of one search see the same rows in the same order whatever their batch
size. Token rows are prepared once, written to one safetensors file, and mapped by every trial.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.trainables.config import DataConfig
from lorafront.trainables.formats import FORMATS, check_columns, split_rows
from lorafront.trainables.read_rows import RawData, read_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafront.trainables.task import Task

DEFAULT_EVAL_SHARE = 0.1
DEFAULT_EVAL_ROWS = 500
FORMAT_VERSION = 1  # of the cache file; part of its name


@dataclass(frozen=True)
class TokenRows:
    """Token rows of unequal length, flat.

    Attributes:
        ids: int32[tokens].
        offsets: int64[rows + 1]; row i is `ids[offsets[i]:offsets[i + 1]]`.
        masked: int32[rows]; so many leading tokens of a row (its prompt) are not trained on and not evaluated.
    """

    ids: np.ndarray
    offsets: np.ndarray
    masked: np.ndarray

    def __len__(self) -> int:
        return len(self.masked)

    @property
    def lengths(self) -> np.ndarray:
        """int64[rows]: tokens per row."""
        return np.diff(self.offsets)

    def row(self, index: int) -> tuple[np.ndarray, int]:
        """(token ids, number of masked leading tokens) of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]], int(self.masked[index])

    @classmethod
    def build(cls, rows: list[tuple[list[int], int]]) -> TokenRows:
        """From (token ids, masked) pairs."""
        lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
        flat = np.fromiter((token for ids, _ in rows for token in ids), dtype=np.int32, count=int(lengths.sum()))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(flat, offsets, np.array([masked for _, masked in rows], dtype=np.int32))


@dataclass(frozen=True)
class TokenData:
    """The prepared data of a search.

    Attributes:
        train: rows to train on.
        evaluation: rows to evaluate on.
        pad_id: token that fills up short rows of a batch; never seen by the loss.
        notes: what a user should know, such as rows that were dropped.
    """

    train: TokenRows
    evaluation: TokenRows
    pad_id: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Raw rows that have every column that their format needs.

    Attributes:
        train: rows to train on, or to split where `evaluation` is None.
        evaluation: rows of a split of its own.
        source: for messages.
    """

    train: list[dict[str, Any]]
    evaluation: list[dict[str, Any]] | None
    source: str


def read(data: DataConfig) -> Rows:
    """Read the rows and check that they are what their format says.

    Raises:
        InvalidInput: the data is missing, malformed, empty, lacks a column, or holds something that is no text.
    """
    problems: list[Problem] = []
    found: dict[str, RawData] = {}
    for key, name in (("path", data.path), ("eval_path", data.eval_path)):
        if name is None:
            continue
        try:
            raw = read_data(name, key, data.config_name, data.revision)
            check_columns(data.format, raw.columns, raw.source)
            split_rows(data.format, raw.train, raw.source)
            found[key] = raw
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput(problems)
    evaluation = found["eval_path"].train if "eval_path" in found else found["path"].evaluation
    return Rows(found["path"].train, evaluation, found["path"].source)


def prepare(
    raw: Rows,
    data: DataConfig,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    train_batch: int,
    eval_batch: int,
) -> tuple[Path, TokenData]:
    """Split and encode rows, or find them in the cache. Writes nothing; `store` does.

    Args:
        raw: what `read` found.
        data: the `data` section of a search file.
        task: encodes rows.
        tokenizer: of the base model.
        folder: where cache files stand.
        train_batch: rows that training needs at least.
        eval_batch: rows that evaluation needs at least.

    Returns:
        The name that the cache file has or will have, and its content.

    Raises:
        InvalidInput: too few rows are left.
    """
    file = folder / f"{_fingerprint(data, task, tokenizer, raw)}.safetensors"
    tokens = _cached(file) or _encode(data, task, tokenizer, raw)
    problems = [
        Problem(
            ("data",),
            f"{len(rows)} {name} rows (of at most {data.max_length} tokens) are left, and one batch needs {least}: "
            "give more data, a smaller batch, or a smaller max_length",
        )
        for name, rows, least in (
            ("training", tokens.train, train_batch),
            ("evaluation", tokens.evaluation, eval_batch),
        )
        if len(rows) < least
    ]
    if problems:
        raise InvalidInput(problems)
    return file, tokens


def _encode(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, raw: Rows) -> TokenData:
    packed = FORMATS[data.format].packed

    def encode(rows: list[dict[str, Any]], source: str) -> list[tuple[list[int], int]]:
        return task.encode(split_rows(data.format, rows, source), tokenizer, data.max_length, packed=packed)

    if packed:  # blocks are the rows, so they are what is split
        encoded = encode(raw.train, raw.source)
        held_out = encode(raw.evaluation, data.eval_path or raw.source) if raw.evaluation is not None else None
        train_rows, eval_rows = _split(encoded, held_out, data)
        dropped = 0
    else:
        train_raw, eval_raw = _split(raw.train, raw.evaluation, data)
        train_rows = encode(train_raw, raw.source)
        eval_rows = encode(eval_raw, data.eval_path or raw.source)
        dropped = len(train_raw) + len(eval_raw) - len(train_rows) - len(eval_rows)
    notes = [f"{dropped} rows dropped: no target token within max_length {data.max_length}"] if dropped else []
    if tokenizer.pad_token_id is None:
        notes.append("the tokenizer has no padding token; its end token pads, masked from attention and loss")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TokenData(TokenRows.build(train_rows), TokenRows.build(eval_rows), int(pad or 0), tuple(notes))


def _split(rows: list[Any], evaluation: list[Any] | None, data: DataConfig) -> tuple[list[Any], list[Any]]:
    """Seeded split into (train, evaluation), each cut to the rows asked for."""
    order = seeded_generator(data.split_seed, "split").permutation(len(rows))
    if evaluation is None:
        wanted = data.eval_rows or min(DEFAULT_EVAL_ROWS, max(1, round(len(rows) * DEFAULT_EVAL_SHARE)))
        wanted = min(wanted, len(rows) // 2)  # never more than half of what there is
        held_out = [rows[i] for i in order[:wanted]]
        order = order[wanted:]
    else:
        chosen = seeded_generator(data.split_seed, "evaluation").permutation(len(evaluation))
        held_out = [evaluation[i] for i in chosen[: data.eval_rows or DEFAULT_EVAL_ROWS]]
    return [rows[i] for i in order[: data.train_rows]], held_out


def seeded_generator(seed: int, *words: str | int) -> np.random.Generator:
    """A generator that depends on nothing but the seed and the words (Philox, Salmon et al. 2011)."""
    digest = hashlib.sha256(json.dumps([seed, *words]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def row_order(rows: int, seed: int) -> Iterator[int]:
    """Row indices in training order, without end: a new permutation of all rows for every epoch."""
    epoch = 0
    while True:
        yield from (int(i) for i in seeded_generator(seed, "order", epoch).permutation(rows))
        epoch += 1


def _fingerprint(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, raw: Rows) -> str:
    """Names the cache by everything that its content depends on, the rows themselves included."""
    digest = hashlib.sha256()
    facts = [FORMAT_VERSION, task.name, data.model_dump(mode="json"), tokenizer.pad_token_id, tokenizer.eos_token_id]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update((backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())).encode())
    for rows in (raw.train, raw.evaluation or []):
        digest.update(str(len(rows)).encode())
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:24]


def store(file: Path, tokens: TokenData) -> None:
    """Write the cache file, whole or not at all; one that is there already says the same."""
    if file.is_file():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{name}.{field}": getattr(rows, field)
        for name, rows in (("train", tokens.train), ("evaluation", tokens.evaluation))
        for field in ("ids", "offsets", "masked")
    }
    aside = file.with_name(f"{file.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        save_file(arrays, aside, metadata={"pad_id": str(tokens.pad_id), "notes": json.dumps(tokens.notes)})
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _cached(file: Path) -> TokenData | None:
    """The cache's content; None where there is none that can be read, which is then removed."""
    try:
        return load(file) if file.is_file() else None
    except safetensors.SafetensorError:
        file.unlink()
        return None


def load(file: Path) -> TokenData:
    """Read a cache file that `prepare` wrote."""
    with safetensors.safe_open(file, framework="numpy") as stored:
        metadata = stored.metadata()
        train, evaluation = (
            TokenRows(*(stored.get_tensor(f"{name}.{field}") for field in ("ids", "offsets", "masked")))
            for name in ("train", "evaluation")
        )
    return TokenData(train, evaluation, int(metadata["pad_id"]), tuple(json.loads(metadata["notes"])))
