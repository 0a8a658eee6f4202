"""The user's own modules: found by file and content, whatever else has their name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.user_code import is_reference, load_reference, source_digest


def test_a_changed_module_is_loaded_anew(tmp_path: Path) -> None:
    """An edit between two searches of one process counts, and two folders may use the same name."""
    for folder, value in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metrics.py").write_text(f"VALUE = {value}\n")
    assert [load_reference("metrics:VALUE", tmp_path / folder) for folder in ("one", "two")] == [1, 2]
    before = source_digest("metrics:VALUE", tmp_path / "one")
    (tmp_path / "one" / "metrics.py").write_text("VALUE = 3\n")
    assert load_reference("metrics:VALUE", tmp_path / "one") == 3
    assert source_digest("metrics:VALUE", tmp_path / "one") != before


def test_a_module_of_the_user_hides_no_installed_one(tmp_path: Path) -> None:
    """A file that is called like a library is the user's where the file names it, and nowhere else."""
    (tmp_path / "json.py").write_text("VALUE = 1\n")
    assert load_reference("json:VALUE", tmp_path) == 1
    import json

    assert json.loads("1") == 1
    assert load_reference("json:loads", None) is json.loads


@pytest.mark.parametrize("content", ["raise SystemExit(3)", "1 / 0", "def broken(:"])
def test_a_module_that_cannot_be_imported_is_refused(tmp_path: Path, content: str) -> None:
    """Whatever it raises, and again when it is asked for again."""
    (tmp_path / "broken.py").write_text(content)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"broken cannot be imported in"):
            load_reference("broken:x", tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a:b", True), ("a.b:c", True), ("a", False), ("a:b:c", False), ("a:1", False), ("a/b:c", False), (None, False)],
)
def test_a_reference_is_module_and_name(text: object, expected: bool) -> None:
    """Nothing else is taken for one."""
    assert is_reference(text) is expected
