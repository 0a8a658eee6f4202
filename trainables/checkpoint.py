"""Folders and files that are there whole or not at all, and that prove what they hold.

Written aside, synced, then renamed; a folder carries `MANIFEST.json` with the size and SHA-256 of each file. Nothing is
pickled: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorafront.spaces.errors import CheckpointInvalid
from lorafront.trainables.fault_points import reached

MANIFEST = "MANIFEST.json"
ASIDE = ".tmp-"


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by the JSON of `value`; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}{ASIDE}{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], object], facts: dict[str, Any]) -> None:
    """Let `fill` write into a folder aside, add the manifest, and rename the folder to `path`.

    A folder that stands at `path` already is kept if it verifies (the same work was done before) and replaced if not.
    """
    if path.exists():
        try:
            read_manifest(path)
        except CheckpointInvalid:
            shutil.rmtree(path)
        else:
            return
    aside = path.with_name(f"{path.name}{ASIDE}{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    try:
        fill(aside)
        files = {
            str(file.relative_to(aside)): {"sha256": sha256(file), "bytes": file.stat().st_size}
            for file in sorted(aside.rglob("*"))
            if file.is_file()
        }
        for name in files:
            _sync_file(aside / name)
        reached("mid_ckpt_write")
        write_json(aside / MANIFEST, {"facts": facts, "files": files})
        _sync_folder(aside)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(path.parent)
    reached("after_ckpt_rename")


def read_manifest(path: Path) -> dict[str, Any]:
    """Check every file of a folder against its manifest; return the facts that were written with it.

    Raises:
        CheckpointInvalid: the manifest is missing, or a file is missing, of another size, or of other content.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files, facts = manifest["files"], manifest["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointInvalid(f"{path} has no readable {MANIFEST}: {error}") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"] or sha256(file) != expected["sha256"]:
            raise CheckpointInvalid(f"{file} is not what {MANIFEST} says; it was cut or changed")
    return dict(facts)


def sha256(file: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_file(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
