"""Folders that are there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorafront.spaces.errors import CheckpointInvalid
from lorafront.trainables.checkpoint import MANIFEST, read_manifest, write_folder, write_json


def fill(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "weights").write_bytes(bytes(range(256)))


def test_a_folder_that_was_written_verifies(tmp_path: Path) -> None:
    """What was written reads back with its facts, and nothing else is left beside it."""
    write_folder(tmp_path / "ckpt", fill, {"rows": 8})
    assert read_manifest(tmp_path / "ckpt") == {"rows": 8}
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    """A flipped bit, a cut file, a missing file and a torn manifest are each refused."""
    folder = tmp_path / "ckpt"
    write_folder(folder, fill, {})
    file = folder / "inner" / "weights"
    raw = file.read_bytes()
    if damage == "flip":
        file.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif damage == "cut":
        file.write_bytes(raw[:-1])
    elif damage == "remove":
        file.unlink()
    else:
        manifest = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(manifest[: len(manifest) // 2])
    with pytest.raises(CheckpointInvalid):
        read_manifest(folder)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """When filling fails, neither the folder nor its half-written twin is there."""

    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "ckpt", fail, {})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_replaced_and_a_whole_one_kept(tmp_path: Path) -> None:
    """Writing again over a damaged folder mends it; over a whole one it changes nothing."""
    folder = tmp_path / "ckpt"
    write_folder(folder, fill, {"first": True})
    write_folder(folder, fill, {"first": False})
    assert read_manifest(folder) == {"first": True}
    (folder / "inner" / "weights").unlink()
    write_folder(folder, fill, {"first": False})
    assert read_manifest(folder) == {"first": False}


def test_json_is_replaced_whole_and_refuses_nan(tmp_path: Path) -> None:
    """A value that JSON cannot say leaves the old file as it was."""
    file = tmp_path / "a.json"
    write_json(file, {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"x": float("nan")})
    assert json.loads(file.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
