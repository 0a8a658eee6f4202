"""What of a search travels to a cluster, and where it lies there."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafront.search.paths import located
from lorafront.search.search_file import parse_search
from lorafront.search.travel import Luggage, imported, layout, pack
from lorafront.spaces.errors import InvalidInput


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with searches, data beside it, a model, and code; the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("searches/near.jsonl", "data/rows.jsonl", "data/.gitignore", "model/config.json", "model/a/b.json",
                 "model/__pycache__/x.pyc", "searches/helpers.py", "searches/other.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "searches/metrics.py").write_text("import math\nfrom helpers import helped\n")
    return tmp_path


def packed(project: Path, limit: int = 10_000, **changes: Any) -> Luggage:
    search = {"name": "s", "model": "org/model", "data": {"path": "near.jsonl"}, **changes}
    (project / "searches/x.yaml").write_text("the file")
    return pack(parse_search(search), project / "searches/x.yaml", limit)


def places(luggage: Luggage) -> list[str]:
    return sorted(map(str, luggage.files))


def test_what_is_named_by_a_relative_path_travels(project: Path) -> None:
    """From the current folder or beside the search file; of a folder all of it, whatever git ignores."""
    found = packed(project, model="model", data={"path": "near.jsonl", "eval_path": "data/rows.jsonl"})
    assert places(found) == [
        "data/rows.jsonl", "model/a/b.json", "model/config.json", "near.jsonl", "search.yaml",
    ]  # fmt: skip
    assert found.files[PurePosixPath("near.jsonl")].read_text() == "searches/near.jsonl"
    assert ".gitignore" in str(places(packed(project, data={"path": "data"})))


def test_paths_mean_the_same_where_they_are_put(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also those that lead out of the folder of the search file; the archive and the copy have the same."""
    names = {"path": "../data/rows.jsonl", "eval_path": "near.jsonl"}
    (project / "searches/deep").mkdir()
    found = packed(project, data=names)
    target = tmp_path_factory.mktemp("there")
    found.copied(target)
    for name in names.values():
        assert Path(located(name, target / found.base)).is_relative_to(target)
        assert Path(located(name, target / found.base)).read_text() == name.replace("..", "").strip("/").replace(
            "near", "searches/near"
        )
    found.zipped(target / "all.zip")
    assert sorted(zipfile.ZipFile(target / "all.zip").namelist()) == places(found)


def test_what_the_cluster_has_does_not_travel(project: Path) -> None:
    """Absolute paths, `~`, and names on the hub, even where this machine has the same."""
    there = str(project / "data/rows.jsonl")
    data = {"path": there, "eval_path": "~/rows.jsonl", "also_evaluate": {"general": {"path": "org/data"}}}
    assert places(packed(project, model=str(project / "model"), data=data, code=str(project))) == ["search.yaml"]


def test_own_code_travels_with_what_it_imports(project: Path) -> None:
    """Modules that a search names, and those beside them that they import; nothing else of their folder."""
    objectives = ["perplexity", "metrics:speed"]
    assert places(packed(project, objectives=objectives)) == [
        "helpers.py", "metrics.py", "near.jsonl", "search.yaml",
    ]  # fmt: skip
    assert places(packed(project, objectives=objectives, code="searches", data={"path": "org/data"})) == [
        "search.yaml", "searches/helpers.py", "searches/metrics.py",
    ]  # fmt: skip


def test_what_is_missing_is_said_before_anything_is_sent(project: Path) -> None:
    """A relative path that is nowhere, with its key."""
    with pytest.raises(InvalidInput, match=r"data\.path: \./gone\.jsonl is neither in .* nor in .*searches"):
        packed(project, data={"path": "./gone.jsonl"})


def test_what_is_too_large_is_refused(project: Path) -> None:
    """With the name of the largest, and what to do."""
    (project / "big.txt").write_bytes(b"x" * 3_000_000)
    with pytest.raises(
        InvalidInput, match=r"has 2\.9 MiB, most of it in big\.txt .*at most 1\.9 MiB travel: put it on"
    ):
        packed(project, 2_000_000, data={"path": "big.txt"})


@given(st.lists(st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1).map("/".join)))
def test_no_name_leads_out_of_the_luggage(names: list[str]) -> None:
    """However many `..` a relative name has."""
    base = layout(names)
    for name in names:
        place = Path("/luggage", base, name)
        assert Path(*_followed(place.parts)).is_relative_to("/luggage")


def _followed(parts: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for part in parts:
        if part == "..":
            found.pop()
        else:
            found.append(part)
    return found


def test_imports_are_read_and_not_run() -> None:
    """Full names, also inside of functions; what is no Python imports nothing."""
    assert imported("import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    import i\n") == {
        "a.b", "c", "d.e", "i",
    }  # fmt: skip
    assert imported("this is no Python") == set()
