"""Names of searches and of their files: nothing leads out of the root."""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorafront.search.paths import RESERVED, RootPaths, check_name, default_root
from lorafront.spaces.errors import InvalidInput, SearchNotFound


@pytest.mark.parametrize("name", ["a", "7", "phi2-alpaca", "run_1.b", "A" * 64, "a..b", "tokens2"])
def test_plain_names_pass(name):
    """Letters, digits, dots, hyphens and underscores make a name of up to 64."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/abs", "a/b", "a\\b", ".hidden", "-x", "_x", "a b", "a\n", "a\0", "é", "\u202ea", "🙂",
     "x" * 65, "x" * 300, "~", "a:b", "٣", *sorted(RESERVED), "Tokens", "MLFLOW.db"],
)  # fmt: skip
def test_other_names_are_refused(name):
    """What could lead elsewhere, or is a name of ours, is refused with the rule and the name."""
    with pytest.raises(ValueError, match="must be 1 to 64 letters") as caught:
        check_name(name)
    assert repr(name) in str(caught.value)


@given(st.one_of(st.text(max_size=70), st.text("ab./\\ -_~", max_size=6)))
@example("..")
def test_names_that_pass_are_folders_of_the_root(name):
    """Whatever name passes is a folder directly below the root, apart from what searches share."""
    root = RootPaths(Path("/runs"))
    try:
        folder = root.search(check_name(name)).folder
    except ValueError:
        return
    assert Path(os.path.normpath(folder)) == folder
    assert folder.parent == root.root
    assert folder not in {root.tokens, root.mlflow_db, root.mlflow_artifacts}


def test_files_of_a_search_stand_in_its_folder():
    """Every file of a search has a name of its own below the search's folder, a trial's by number and epoch."""
    paths = RootPaths(Path("runs")).search("x")
    files = [paths.search_yaml, paths.study_db, paths.driver_lock, paths.front_png, paths.front_json]
    assert {file.parent for file in files} == {paths.folder} == {Path("runs/x")}
    assert len(set(files)) == len(files)
    assert paths.name == "x"
    assert paths.trial(7, 2).path == Path("runs/x/trials/00007/epoch-2")


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 99)), min_size=2, max_size=2, unique=True))
def test_trials_do_not_share_a_folder(trials):
    """Different trials, and different epochs of one trial, have different folders."""
    paths = RootPaths(Path("runs")).search("x")
    assert len({paths.trial(*trial).path for trial in trials}) == 2


def test_root_is_that_of_the_environment(monkeypatch):
    """LORAFRONT_ROOT names the root; without it, or where it is empty, it is `runs` here."""
    monkeypatch.setenv("LORAFRONT_ROOT", "/data/searches")
    assert default_root() == Path("/data/searches")
    monkeypatch.setenv("LORAFRONT_ROOT", "")
    assert default_root() == Path("runs")


@pytest.fixture
def root(tmp_path):
    """A root with two searches and things that are none."""
    for name in ("zeta", "alpha"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.db").touch()
    for name in ("tokens", "half-made"):
        (tmp_path / name).mkdir()
    return RootPaths(tmp_path)


def test_searches_are_folders_with_a_study(root):
    """Searches are what has a study; a folder without one is none."""
    assert sorted(root.names()) == ["alpha", "zeta"]
    assert root.existing("alpha").folder == root.root / "alpha"


def test_names_of_no_root_are_none(tmp_path):
    """A root that is not there yet has no searches."""
    assert RootPaths(tmp_path / "later").names() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alhpa", "no search 'alhpa' under {root}. Did you mean 'alpha'? There is: "),
        ("half-made", "no search 'half-made' under {root}. There is: "),
        ("../alpha", "name must be 1 to 64 letters"),
    ],
)
def test_a_search_that_is_not_there_is_refused(root, name, message):
    """An unknown search is refused with the nearest name and those that there are."""
    with pytest.raises(SearchNotFound, match=re.escape(message.format(root=root.root))):
        root.existing(name)


def test_without_searches_that_is_said(tmp_path):
    """Where there is no search at all, the refusal says so."""
    with pytest.raises(SearchNotFound, match="There is none yet"):
        RootPaths(tmp_path).existing("alpha")


def test_names_are_in_order_of_age(tmp_path):
    """Searches are listed oldest first, by the time at which their folder last changed."""
    for name in ("b", "c", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.db").touch()
        time.sleep(0.02)
    assert RootPaths(tmp_path).names() == ["b", "c", "a"]


@pytest.mark.parametrize("below", [".", "new", "new/and/deeper"])
def test_a_root_that_can_be_written_leaves_no_trace(tmp_path, below):
    """The check of a root that is, or can be made, leaves nothing behind and makes nothing."""
    RootPaths(tmp_path / below).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_root_is_made_for_its_user_alone(tmp_path):
    """Others can neither list nor enter it; one that is there stays as it is."""
    RootPaths(tmp_path / "deep" / "root").make()
    assert stat.S_IMODE((tmp_path / "deep" / "root").stat().st_mode) == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    RootPaths(tmp_path / "shared").make()
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o755


def test_a_root_that_everybody_may_write_is_refused(tmp_path):
    """Somebody else could put a folder in the place of a search's; one like /tmp, where nobody can, is taken."""
    tmp_path.chmod(0o777)
    with pytest.raises(InvalidInput, match="chmod o-w"):
        RootPaths(tmp_path).check_writable()
    tmp_path.chmod(0o1777)
    RootPaths(tmp_path).check_writable()


def test_a_root_that_is_a_file_is_refused(tmp_path):
    """A file where the root or a folder above it should be is refused with the option that chooses another."""
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match=r"cannot write below .*/file .*choose another folder with --root"):
            RootPaths(root).check_writable()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux' /proc, where nobody can make files")
def test_a_root_that_cannot_be_written_is_refused():
    """A file system that takes no files is refused, for root as well."""
    with pytest.raises(InvalidInput, match="cannot write below /proc"):
        RootPaths(Path("/proc/lorafront")).check_writable()


@pytest.mark.parametrize("target", ["loop", "nowhere"])
def test_a_root_that_is_a_link_to_nowhere_is_refused(tmp_path, target):
    """A link to itself or to nothing cannot become a folder, so it is refused before the search starts."""
    (tmp_path / "loop").symlink_to(tmp_path / target)
    with pytest.raises(InvalidInput):
        RootPaths(tmp_path / "loop").check_writable()
