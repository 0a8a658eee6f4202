"""Rows to token rows: split, encode, cache.

Everything is seeded and counted in rows: trials of one search see the same rows in the same order whatever their batch
size. Token rows are prepared once, written to one safetensors file, and mapped by every trial.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save_file

from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.trainables.config import DataConfig
from lorafront.trainables.formats import Row, RowFormat
from lorafront.trainables.row_sets import Pairs, RawSet, RowSets
from lorafront.trainables.task import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafront.trainables.task import Task

DEFAULT_EVAL_SHARE = 0.1
DEFAULT_EVAL_ROWS = 500
LEAST_EVALUATED = 128  # rows at an early rung; of fewer the order of two trials says little
ALSO = "also."  # of the names of second sets in the cache file
SEARCHED = "searched-rows"  # second set of a confirmation: the rows that its search evaluated on; no user can say so
_PARTS = ("ids", "offsets", "targets")
FORMAT_VERSION = 2  # of the cache file; part of its name


@dataclass(frozen=True)
class TokenRows:
    """Token rows of unequal length, flat.

    Attributes:
        ids: int32[tokens].
        offsets: int64[rows + 1]; row i is `ids[offsets[i]:offsets[i + 1]]`.
        targets: int32[rows]; where the target of a row starts (what is before it, the prompt, is neither trained on nor
            evaluated), or which label it has.
    """

    ids: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> np.ndarray:
        """int64[rows]: tokens per row."""
        return np.diff(self.offsets)

    def row(self, index: int) -> tuple[np.ndarray, int]:
        """(token ids, target) of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]], int(self.targets[index])

    def part(self, share: float, least: int = LEAST_EVALUATED) -> TokenRows:
        """A draw of the rows, the same each time: a smaller share is a part of a larger one, and 1 is all.

        Args:
            share: of the rows, rounded up.
            least: rows that are taken in any case, where there are so many.
        """
        wanted = max(least, math.ceil(len(self) * share))
        if wanted >= len(self):
            return self
        chosen = seeded_generator(0, "part").permutation(len(self))[:wanted]
        offsets = np.concatenate([[0], np.cumsum(self.lengths[chosen])]).astype(np.int64)
        ids = np.concatenate([self.row(int(i))[0] for i in chosen])
        return TokenRows(ids, offsets, self.targets[chosen])

    @classmethod
    def build(cls, rows: list[tuple[list[int], int]]) -> TokenRows:
        """From (token ids, target) pairs."""
        lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
        flat = np.fromiter((token for ids, _ in rows for token in ids), dtype=np.int32, count=int(lengths.sum()))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(flat, offsets, np.array([target for _, target in rows], dtype=np.int32))


@dataclass(frozen=True)
class TokenData:
    """The prepared data of a search.

    Attributes:
        train: rows to train on.
        evaluation: rows to evaluate on.
        pad_id: token that fills up short rows of a batch; never seen by the loss.
        also: rows of the second evaluation sets, by name.
        labels: names of the classes, in the order of their numbers; none where the task has none.
        notes: what a user should know, such as rows that were dropped.
    """

    train: TokenRows
    evaluation: TokenRows
    pad_id: int
    also: Mapping[str, TokenRows] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def prepare(
    raw: RowSets,
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
        raw: what `read_sets` found.
        data: the `data` section of a search file.
        task: encodes rows.
        tokenizer: of the base model.
        folder: where cache files stand.
        train_batch: rows that training needs at least.
        eval_batch: rows that evaluation needs at least.

    Returns:
        The name that the cache file has or will have, and its content.

    Raises:
        InvalidInput: too few rows are left, or their labels do not fit.
    """
    pairs = _Pairs.of(raw, tokenizer, data)
    file = folder / f"{_fingerprint(data, task, tokenizer, raw, pairs)}.safetensors"
    tokens = _cached(file) or _encode(data, task, tokenizer, raw, pairs)
    problems = [
        Problem(
            ("data",),
            f"{len(rows)} {name} rows (of at most {data.max_length} tokens) are left, and one batch needs {least}: "
            "give more data, a smaller batch, or a smaller max_length",
        )
        for name, rows, least in (
            ("training", tokens.train, train_batch),
            ("evaluation", tokens.evaluation, eval_batch),
            *((f"also_evaluate.{name}", rows, 1) for name, rows in tokens.also.items()),
        )
        if len(rows) < least
    ]
    if problems:
        raise InvalidInput(problems)
    return file, tokens


@dataclass(frozen=True)
class _Pairs:
    """All rows as pairs."""

    main: Pairs
    evaluation: Pairs | None
    also: dict[str, Pairs]
    test: Pairs | None = None

    @classmethod
    def of(cls, raw: RowSets, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> _Pairs:
        def split(own: RawSet | None, rows: list[Row] | None) -> Pairs | None:
            if own is not None:
                return own.pairs(own.rows, tokenizer)
            return raw.main.pairs(rows, tokenizer) if rows is not None else None

        also = {name: found.pairs(found.rows, tokenizer) for name, found in raw.also.items()}
        test = split(raw.test, raw.main.test) if data.evaluate_on == "held_out" else None
        evaluation = split(raw.evaluation, raw.main.evaluation)
        return cls(raw.main.pairs(raw.main.rows, tokenizer), evaluation, also, test)


def _encode(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, raw: RowSets, pairs: _Pairs) -> TokenData:
    labels = _labels(task, raw, pairs)
    notes: list[str] = []

    def encode(rows: Pairs, form: RowFormat, name: str) -> list[tuple[list[int], int]]:
        encoded = task.encode(rows, tokenizer, Encoding(data.max_length, form.packed, form.framed, labels))
        if not form.packed and len(encoded) < len(rows):
            reason = f"no target token within max_length {data.max_length}"
            own = "" if type(task).__module__.startswith("lorafront.") else f", or task {task.name} leaves them out"
            notes.append(f"{len(rows) - len(encoded)} of {len(rows)} {name} rows dropped: {reason}{own}")
        return encoded

    form = raw.main.form
    sources = [
        encode(rows, form, name) if form.packed and rows is not None else rows  # blocks are the rows, so they are split
        for rows, name in ((pairs.main, "training"), (pairs.evaluation, "evaluation"), (pairs.test, "held-out"))
    ]
    parts = split_rows(sources[0] or [], sources[1], data)
    named = {"training": parts.train, "evaluation": parts.evaluation}
    if data.evaluate_on == "held_out":
        second = [row for rows in pairs.also.values() for row in rows]
        named["held-out"] = _held_out(parts, sources[2], second, data)
    encoded = {name: part if form.packed else encode(part, form, name) for name, part in named.items()}
    also = {
        name: _some(
            encode(rows, raw.also[name].form, f"{name} (also_evaluate)"), data.also_evaluate[name].rows, data, name
        )
        for name, rows in pairs.also.items()
    }
    if tokenizer.pad_token_id is None:
        notes.append("the tokenizer has no padding token; its end token pads, masked from attention and loss")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    train, evaluation = encoded["training"], encoded["evaluation"]
    if "held-out" in encoded:
        also[SEARCHED], evaluation = evaluation, encoded["held-out"]
    return TokenData(
        TokenRows.build(train),
        TokenRows.build(evaluation),
        int(pad or 0),
        {name: TokenRows.build(rows) for name, rows in also.items()},
        labels,
        tuple(notes),
    )


def _labels(task: Task, raw: RowSets, pairs: _Pairs) -> tuple[str, ...]:
    """Classes of the main rows; other sets must not have more."""
    try:
        labels = task.labels(pairs.main)
    except InvalidInput as error:
        raise InvalidInput(
            [Problem(raw.main.key, f"{raw.main.source}: {p.message}") for p in error.problems]
        ) from error
    problems = []
    if labels:
        sets = [(raw.evaluation or raw.main, pairs.evaluation or []), (raw.test or raw.main, pairs.test or [])]
        sets += [(raw.also[name], rows) for name, rows in pairs.also.items()]
        known = set(labels)
        for found, rows in sets:
            for number, (_, label) in enumerate(rows, start=1):
                if label not in known:
                    message = (
                        f"row {number} of {found.source} has label {label!r}; the training rows have {few(labels)}"
                    )
                    problems.append(Problem(found.key, message))
                    break
    if problems:
        raise InvalidInput(problems)
    return labels


def few(names: tuple[str, ...]) -> str:
    """The first ten, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")  # noqa: PLR2004


def _some(rows: list[Any], wanted: int | None, data: DataConfig, *words: str) -> list[Any]:
    """A seeded choice of so many rows."""
    chosen = seeded_generator(data.split_seed, "evaluation", *words).permutation(len(rows))
    return [rows[i] for i in chosen[: wanted or DEFAULT_EVAL_ROWS]]


class Parts(NamedTuple):
    """Rows to train on, to evaluate on, and what both leave of their sources."""

    train: list[Any]
    evaluation: list[Any]
    left_of_train: list[Any]
    left_of_evaluation: list[Any]


def split_rows(rows: list[Any], evaluation: list[Any] | None, data: DataConfig) -> Parts:
    """Seeded split, each part cut to the rows asked for; `evaluation` is a split of its own."""
    left: list[Any] = []
    order = seeded_generator(data.split_seed, "split").permutation(len(rows))
    if evaluation is None:
        wanted = data.eval_rows or min(DEFAULT_EVAL_ROWS, max(1, round(len(rows) * DEFAULT_EVAL_SHARE)))
        wanted = min(wanted, len(rows) // 2)  # never more than half of what there is
        chosen = [rows[i] for i in order[:wanted]]
        order = order[wanted:]
    else:
        shuffled = _some(evaluation, len(evaluation), data)
        chosen, left = shuffled[: data.eval_rows or DEFAULT_EVAL_ROWS], shuffled[data.eval_rows or DEFAULT_EVAL_ROWS :]
    wanted = data.train_rows or len(order)
    return Parts([rows[i] for i in order[:wanted]], chosen, [rows[i] for i in order[wanted:]], left)


def _held_out(parts: Parts, test: list[Any] | None, second: list[Any], data: DataConfig) -> list[Any]:
    """As many rows as the search evaluated on that it never saw, none of them equal to one that it did.

    Args:
        parts: what the search trains and evaluates on, and what it leaves.
        test: the test split, where there is one.
        second: rows of the second sets, which it saw too.
        data: how many rows it asked for.

    From the test split, else from what the search left: first of its evaluation rows, then of its training rows.

    Raises:
        InvalidInput: none of these has half as many.
    """
    seen = {json.dumps(row) for row in (*parts.train, *parts.evaluation, *second)}
    most = 0
    for source in [test] if test is not None else [parts.left_of_evaluation, parts.left_of_train]:
        unseen = [row for row in source if json.dumps(row) not in seen]
        if unseen and 2 * len(unseen) >= len(parts.evaluation):
            return _some(unseen, len(parts.evaluation), data, "held out")
        most = max(most, len(unseen))
    message = (
        f"{most} rows are left that the search has not seen, and it evaluated on {len(parts.evaluation)}: half as many "
        "are the least that says something; give held-out data"
    )
    raise InvalidInput([Problem(("data", "test_path"), message)])


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


def largest_batch(rows: TokenRows, seed: int, seen: int, size: int) -> list[int]:
    """Row indices of a batch as large as the first `seen` rows in training order can make one of so many rows.

    It holds the longest row, and those with the longest prompt and completion: an encoder-decoder pads each side.
    """
    order = list(islice(row_order(len(rows), seed), seen))
    lengths, starts = rows.lengths[order], rows.targets[order]
    extremes = [order[int(sizes.argmax())] for sizes in (lengths, starts, lengths - starts)]
    chosen = list(dict.fromkeys([*extremes, *order]))[:size]
    return chosen + [extremes[0]] * (size - len(chosen))


def _own_source(task: Task) -> str:
    """The files of a user's own task: what it encodes changes with them. Ours changes with FORMAT_VERSION."""
    digest = hashlib.sha256()
    for kind in type(task).__mro__:
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if file is not None and not kind.__module__.startswith("lorafront."):
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _fingerprint(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, raw: RowSets, pairs: _Pairs) -> str:
    """Names the cache by everything that its content depends on, the rows themselves included."""
    digest = hashlib.sha256()
    forms = [[raw.main.form.packed, raw.main.form.framed], *([s.form.packed, s.form.framed] for s in raw.also.values())]
    # Of a search the cache keeps the name that it had before there were held-out rows.
    later = {"test_path", "evaluate_on"} if data.evaluate_on == "evaluation" else {"test_path"}
    facts = [
        FORMAT_VERSION, task.name, _own_source(task), forms, data.model_dump(mode="json", exclude=later),
        tokenizer.pad_token_id, tokenizer.eos_token_id, getattr(tokenizer, "chat_template", None),
    ]  # fmt: skip
    digest.update(json.dumps(facts, sort_keys=True).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update((backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())).encode())
    test = [] if pairs.test is None else [("test", pairs.test)]
    sets = [("main", pairs.main), ("evaluation", pairs.evaluation or []), *sorted(pairs.also.items()), *test]
    for name, rows in sets:
        digest.update(f"{name} {len(rows)}".encode())
        for pair in rows:
            digest.update(json.dumps(pair).encode())
    return digest.hexdigest()[:24]


def store(file: Path, tokens: TokenData) -> None:
    """Write the cache file, whole or not at all; one that is there already says the same."""
    if file.is_file():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    sets = {"train": tokens.train, "evaluation": tokens.evaluation, **{f"{ALSO}{n}": r for n, r in tokens.also.items()}}
    arrays = {f"{name}.{part}": getattr(rows, part) for name, rows in sets.items() for part in _PARTS}
    facts = {"pad_id": tokens.pad_id, "labels": tokens.labels, "notes": tokens.notes, "sets": list(sets)}
    aside = file.with_name(f"{file.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        save_file(arrays, aside, metadata={"facts": json.dumps(facts)})
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
        facts = json.loads(stored.metadata()["facts"])
        sets = {name: TokenRows(*(stored.get_tensor(f"{name}.{part}") for part in _PARTS)) for name in facts["sets"]}
    also = {name.removeprefix(ALSO): rows for name, rows in sets.items() if name.startswith(ALSO)}
    labels, notes = tuple(facts["labels"]), tuple(facts["notes"])
    return TokenData(sets["train"], sets["evaluation"], facts["pad_id"], also, labels, notes)
