"""Raw rows from a file, a folder or the hub: where they lie, which split they are, and that they are what they say.

Local text, JSON lines and CSV are read strictly (UTF-8, line numbers in messages): a library would replace broken bytes
and train on them. Parquet and hub names go through `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.trainables.config import RowSource
from lorafront.trainables.formats import Row
from lorafront.trainables.hub import hub_answers, local_folder_or_file, unreachable

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst"})
JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
CSV_SUFFIXES = frozenset({".csv", ".tsv"})
TABLE_SUFFIXES = JSON_SUFFIXES | CSV_SUFFIXES
SPLITS = {"train": "train", "valid": "eval", "validation": "eval", "dev": "eval", "eval": "eval", "test": "test"}


@dataclass(frozen=True)
class RawData:
    """Rows as dictionaries.

    Attributes:
        train: rows to train on (or to split, where `evaluation` is None).
        evaluation: rows of the split that the data names, if it names one.
        test: rows of a second such split, if it names two: `evaluation` is the one for validation then.
        source: for messages.
        columns: names that some row has.
    """

    train: list[Row]
    evaluation: list[Row] | None
    source: str
    columns: list[str]
    test: list[Row] | None = None


def read_data(source: RowSource) -> RawData:
    """Read a file, a folder, or a data set on the hub.

    Raises:
        InvalidInput: it is missing, empty, not UTF-8, malformed, or cannot be downloaded.
    """
    place = local_folder_or_file(source.path)
    if place is None:
        if source.header is not None:
            raise InvalidInput([Problem(("header",), f"only CSV and TSV files take one ({source.path} is on the hub)")])
        data = _from_hub(source.path, source.config_name, source.revision)
    elif place.is_dir():
        data = _from_folder(place, source.header)
    else:
        data = RawData(read_file(place, source.header), None, source.path, [])
    if not data.train:
        raise InvalidInput(f"{source.path} has 0 rows")
    columns = list(dict.fromkeys(name for row in data.train for name in row))
    return RawData(data.train, data.evaluation, source.path, columns, data.test)


def read_file(path: Path, header: Sequence[str] | None = None) -> list[Row]:
    """Rows of one local file, by its suffix. A text file is one row with the column `text`.

    Args:
        path: the file.
        header: names of the columns, for a CSV or TSV file without a header line.
    """
    suffix = path.suffix.lower()
    if header is not None and suffix not in CSV_SUFFIXES:
        raise InvalidInput([Problem(("header",), f"only CSV and TSV files take one (got {path.name})")])
    if suffix in TABLE_SUFFIXES:
        return [row for _, row in numbered_rows(path, header)]
    if suffix == ".parquet":
        return _parquet_rows(path)
    text = _utf8(path)
    return [{"text": text}] if text.strip() else []


def numbered_rows(
    path: Path, header: Sequence[str] | None = None, *, delimiter: str | None = None
) -> list[tuple[str, Row]]:
    """Rows of a CSV, TSV or JSON (lines) file, each with its place in words, such as `line 3`.

    Args:
        path: the file.
        header: as for `read_file`.
        delimiter: between the cells of a line; none is the suffix's own.
    """
    return _json_rows(path) if path.suffix.lower() in JSON_SUFFIXES else _csv_rows(path, header, delimiter)


def _utf8(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; convert it (iconv does)"
        ) from error
    if "\0" in text:
        raise InvalidInput(f"{path} holds a NUL byte at offset {raw.index(0)}; is it text?")
    return text.replace("\r\n", "\n")


def _json_rows(path: Path) -> list[tuple[str, Row]]:
    text = _utf8(path)
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        rows = _parse(text, path, 1)
        numbered, place = list(enumerate(rows, start=1)), "entry"
    else:
        place = "line"
        numbered = [
            (number, _parse(line, path, number))
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    for number, row in numbered:
        if not isinstance(row, dict):
            raise InvalidInput(f"{path}, {place} {number}: expected a JSON object (got {type(row).__name__})")
    return [(f"{place} {number}", row) for number, row in numbered]


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        raise InvalidInput(f"{path}, {where}: malformed JSON ({error.msg})") from error


def _csv_rows(path: Path, header: Sequence[str] | None, delimiter: str | None) -> list[tuple[str, Row]]:
    """Every cell is text; a row with more or fewer cells than the header is refused.

    In a TSV file a quotation mark is a character like others, as its writers mean it.
    """
    text = io.StringIO(_utf8(path))
    if path.suffix.lower() == ".tsv":
        reader = csv.DictReader(text, header, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.DictReader(text, header, delimiter=delimiter or ",", strict=True)
    csv.field_size_limit(2**31 - 1)  # the library's own limit is 128 kB
    try:
        rows: list[tuple[str, Row]] = []
        for row in reader:
            if None in row or None in row.values():
                named = f"the header names {len(reader.fieldnames or [])} columns, this line has another number"
                raise InvalidInput(f"{path}, line {reader.line_num}: {named}")
            rows.append((f"line {reader.line_num}", row))
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def _parquet_rows(path: Path) -> list[Row]:
    import datasets
    import pyarrow.parquet

    try:
        return list(datasets.Dataset(pyarrow.parquet.read_table(path)))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InvalidInput(f"{path} cannot be read as Parquet: {error}") from error


def _from_folder(folder: Path, header: Sequence[str] | None) -> RawData:
    """Files named after a split are that split (`train*`, `valid*`, `dev*`, `test*`); others are for training."""
    known = TEXT_SUFFIXES | JSON_SUFFIXES | CSV_SUFFIXES | {".parquet"}
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in known)
    files = [path for path in files if path.stem.lower() not in {"readme", "license", "dataset_info", "dataset_dict"}]
    if not files:
        raise InvalidInput(f"folder {folder} holds no file ending in {', '.join(sorted(known))}")
    by_split: dict[str, list[Row]] = {"train": [], "eval": [], "test": []}
    for path in files:
        by_split[_split_of(path)].extend(read_file(path, header))
    if not by_split["train"]:
        raise InvalidInput(f"folder {folder} holds no training rows: name a file in it, or name one train.*")
    evaluation, *test = [*filter(None, (by_split["eval"], by_split["test"])), None]
    return RawData(by_split["train"], evaluation, str(folder), [], test[0] if test else None)


def _split_of(path: Path) -> str:
    word = path.stem.lower().replace("_", "-").split("-")[0].split(".")[0]
    return SPLITS.get(word, "train")


def _from_hub(name: str, config_name: str | None, revision: str | None) -> RawData:
    import datasets

    if not hub_answers():
        datasets.config.HF_HUB_OFFLINE = True  # the cache or nothing, at once
    try:
        loaded = datasets.load_dataset(name, config_name, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InvalidInput(unreachable("data set", name, error)) from error
    splits = {split: list(rows) for split, rows in loaded.items()}
    trained_on = "train" if "train" in splits else next(iter(splits))
    by_kind = {_split_of(Path(split)): split for split in reversed(splits) if split != trained_on}
    evaluation, *test = [*(splits[by_kind[kind]] for kind in ("eval", "test") if kind in by_kind), None]
    return RawData(splits[trained_on], evaluation, name, [], test[0] if test else None)
