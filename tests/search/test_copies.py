"""Copies of searches in an object store, and exports to one."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from mlflow import MlflowClient
from object_stores import BUCKET, folder_store, s3_server
from support import TINY_LLAMA

from lorafront.search.copies import Copies, CopiesOfAnother, copied, fetch, refuse_copied
from lorafront.search.front import front_of
from lorafront.search.object_store import ObjectStore, place, storage, written_to
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.run import resume_search, run_search
from lorafront.search.search_file import Budget, parse_search
from lorafront.spaces.errors import InvalidInput, SearchExists, SearchNotFound
from lorafront.trainables.checkpoint import MANIFEST, read_manifest, write_folder
from lorafront.trainables.trial import TrialFolder


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture(params=["file", "s3"])
def store(
    request: pytest.FixtureRequest, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    """Empty, and named by the environment."""
    variables = dict(s3) if request.param == "s3" else folder_store(tmp_path / "store")
    if request.param == "s3":
        variables["LORAFRONT_STORAGE"] += f"/{tmp_path.name}"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = storage()
    assert found is not None
    return found


def checkpoint(trial: TrialFolder, rows: int) -> Path:
    write_folder(trial.checkpoint(rows), lambda folder: (folder / "weights").write_text(str(rows)), {"rows": rows})
    return trial.checkpoint(rows)


def study(paths: SearchPaths, value: int) -> None:
    """A SQLite file in the place of a study."""
    paths.folder.mkdir(exist_ok=True)
    with sqlite3.connect(paths.study_db) as database:
        database.execute("CREATE TABLE IF NOT EXISTS studies (value INTEGER)")
        database.execute("DELETE FROM studies")
        database.execute("INSERT INTO studies VALUES (?)", (value,))
    database.close()


def value_of(paths: SearchPaths) -> int:
    database = sqlite3.connect(paths.study_db)
    ((value,),) = database.execute("SELECT value FROM studies")
    database.close()
    return int(value)


@pytest.fixture
def paths(tmp_path: Path) -> SearchPaths:
    """A search with a study and one trial of two checkpoints and a result."""
    found = RootPaths(tmp_path / "root").search("s")
    found.folder.mkdir(parents=True)
    found.search_yaml.write_text("name: s\n")
    study(found, 1)
    trial = found.trial(0, 1)
    for rows in (8, 16):
        checkpoint(trial, rows)
    trial.result.write_text("[]")
    return found


def test_a_search_whose_folder_is_gone_comes_back_as_it_was(store: ObjectStore, paths: SearchPaths) -> None:
    """Study, checkpoints and results, each as its manifest says; half-written files are not copied."""
    (paths.trial(0, 1).path / "ckpt-24.tmp-0").mkdir()
    copies = Copies(store, paths)
    copies.look()
    assert copies.problem == ""
    shutil.rmtree(paths.folder)
    fetch(RootPaths(paths.folder.parent), paths.name)
    assert value_of(paths) == 1
    assert paths.search_yaml.read_text() == "name: s\n"
    assert [read_manifest(path)["rows"] for _, path in paths.trial(0, 1).checkpoints()] == [16, 8]
    assert {path.name for path in paths.trial(0, 1).path.iterdir()} == {"ckpt-8", "ckpt-16", "result.json"}
    assert {path.name for path in paths.folder.parent.iterdir()} == {"s"}


def test_what_the_search_removed_goes_and_what_it_wrote_anew_comes(store: ObjectStore, paths: SearchPaths) -> None:
    """Copies of older checkpoints and of older states of the study do not pile up."""
    copies = Copies(store, paths)
    copies.look()
    shutil.rmtree(paths.trial(0, 1).checkpoint(8))
    checkpoint(paths.trial(0, 1), 32)
    study(paths, 2)
    copies.look()
    assert copies.problem == ""
    there = store.find("s")
    assert {name.split("/")[3] for name in there if name.startswith("trials")} == {"ckpt-16", "ckpt-32", "result.json"}
    assert len({name.split("/")[1] for name in there if name.startswith("study/")}) == 1
    shutil.rmtree(paths.folder)
    fetch(RootPaths(paths.folder.parent), paths.name)
    assert value_of(paths) == 2


def test_an_older_driver_does_not_replace_the_study_of_its_successor(store: ObjectStore, paths: SearchPaths) -> None:
    """However late it copies."""
    old = Copies(store, paths)
    old.look()
    study(paths, 2)
    Copies(store, paths).look()
    study(paths, 1)
    old.look()
    assert old.replaced
    assert "another driver has gone on" in old.problem
    shutil.rmtree(paths.folder)
    fetch(RootPaths(paths.folder.parent), paths.name)
    assert value_of(paths) == 2


def test_a_folder_that_is_behind_its_copies_does_not_go_on(store: ObjectStore, paths: SearchPaths) -> None:
    """Nor one of another search of that name; and what is there stays."""
    Copies(store, paths).look()
    behind = RootPaths(paths.folder.parent.parent / "behind").search("s")
    shutil.copytree(paths.folder, behind.folder)
    study(paths, 2)
    checkpoint(paths.trial(0, 1), 32)
    Copies(store, paths).look()
    there = store.find("s")
    said: list[str] = []
    with pytest.raises(CopiesOfAnother, match="were not made from"), copied(behind, said.append):
        pytest.fail("it went on")
    assert store.find("s") == there
    shutil.rmtree(behind.folder)
    fetch(RootPaths(behind.folder.parent), "s")
    with copied(behind, said.append):
        study(behind, 3)
    assert said == []
    shutil.rmtree(behind.folder)
    fetch(RootPaths(behind.folder.parent), "s")
    assert value_of(behind) == 3
    assert [rows for rows, _ in behind.trial(0, 1).checkpoints()] == [32, 16, 8]


def test_a_result_that_was_replaced_is_copied_again(store: ObjectStore, paths: SearchPaths) -> None:
    """As by a trial that ran out of memory and then did not."""
    copies, trial = Copies(store, paths), paths.trial(0, 1)
    copies.look()
    trial.set_result_aside()
    trial.result.write_text('["better"]')
    copies.look()
    shutil.rmtree(paths.folder)
    fetch(RootPaths(paths.folder.parent), "s")
    assert trial.result.read_text() == '["better"]'
    assert (trial.path / "attempt-0.json").read_text() == "[]"


def test_what_others_put_beside_the_copies_keeps_nothing_from_coming_back(
    s3: dict[str, str], store: ObjectStore, paths: SearchPaths
) -> None:
    """As consoles of object stores do, which mark folders by empty objects."""
    Copies(store, paths).look()
    if store.url.startswith("s3"):
        prefix = store.url.removeprefix(f"s3://{BUCKET}/")
        client = boto3.client("s3")
        for name in ("s/", "s/trials/", "s/trials/00000/"):
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=b"")
    else:
        (Path(store.url.removeprefix("file://")) / "s" / "empty").mkdir()
    shutil.rmtree(paths.folder)
    fetch(RootPaths(paths.folder.parent), "s")
    assert value_of(paths) == 1


def test_a_copy_that_broke_off_is_none(store: ObjectStore, paths: SearchPaths) -> None:
    """A checkpoint without its manifest, or with a file that is cut; of the study the one before is taken."""
    copies = Copies(store, paths)
    copies.look()
    checkpoint(paths.trial(0, 1), 32)
    copies.look()
    store.remove([f"s/trials/00000/epoch-1/ckpt-16/{MANIFEST}"])
    cut = paths.folder / "cut"
    cut.write_text("3")
    store.put(cut, "s/trials/00000/epoch-1/ckpt-32/weights")
    store.put(cut, "s/study/000009-000001-x/study.db")
    shutil.rmtree(paths.folder)
    fetch(RootPaths(paths.folder.parent), paths.name)
    assert [rows for rows, _ in paths.trial(0, 1).checkpoints()] == [8]
    assert value_of(paths) == 1


def test_a_store_that_is_away_is_tried_again(paths: SearchPaths, tmp_path: Path) -> None:
    """Meanwhile it is known why; then all that lacks is copied."""
    (tmp_path / "store").write_text("a file is no place for copies")
    store = ObjectStore((tmp_path / "store").as_uri())
    copies = Copies(store, paths)
    copies.look()
    assert "Error" in copies.problem
    (tmp_path / "store").unlink()
    copies.look()
    assert copies.problem == ""
    assert {name.split("/")[0] for name in store.find("s")} == {"search.yaml", "study", "trials"}


def test_names_that_lead_out_of_the_folder_are_refused(store: ObjectStore, tmp_path: Path) -> None:
    """Whoever may write to the store may not write elsewhere on this machine."""
    for name in ("../evil", "/evil", "a/../../evil", "."):
        with pytest.raises(InvalidInput, match="leads out of it"):
            store.get("s", [name], tmp_path / "new")


def test_a_place_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No URL, a URL with a password, a scheme that nobody knows, one that cannot be written."""
    for url, words in (
        ("bucket/x", "is a URL such as"),
        ("s3://key:secret@host/x", "has a user, a password"),
    ):
        monkeypatch.setenv("LORAFRONT_STORAGE", url)
        with pytest.raises(InvalidInput, match=words) as refused:
            storage()
        assert "secret" not in str(refused.value)
    with pytest.raises(InvalidInput, match="cannot be opened"):
        place("nonsense://x", "it").check()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written and read"):
        ObjectStore((tmp_path / "file").as_uri()).check()
    monkeypatch.delenv("LORAFRONT_STORAGE")
    assert storage() is None


def test_a_place_that_works_is_left_as_it_was(store: ObjectStore) -> None:
    """What the check writes it removes."""
    store.check()
    assert store.find("") == set()
    refuse_copied("s")


def test_a_lost_search_goes_on_from_its_copies(
    store: ObjectStore, ray_session: None, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials stay what they were, no epoch is used twice, its name is taken; MLflow has each trial once."""
    root = RootPaths(tmp_path / "root")
    search = parse_search(
        {
            "name": "s",
            "model": str(TINY_LLAMA),
            "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
            "space": {"rank": [2, 4, 8, 16], "quantization": "bf16"},
            "training": {"rows": 32, "rungs": 2, "batch_size": 4},
            "budget": {"trials": 3},
            "early_stopping": "off",
            "tracking": {"uri": f"sqlite:///{tmp_path / 'runs.db'}"},
        }
    )
    before = run_search(search, root, engine="toy")
    checkpoint(root.search("s").trial(2, 7), 8)  # of a driver that the copy of the study knows nothing of
    Copies(store, root.search("s")).look()
    monkeypatch.delenv("LORAFRONT_STORAGE")
    resume_search("s", root, engine="toy", budget=Budget(trials=5))  # of which there are no copies
    monkeypatch.setenv("LORAFRONT_STORAGE", store.url)
    root = RootPaths(tmp_path / "elsewhere")
    with pytest.raises(SearchExists, match="has copies of a search 's'"):
        run_search(search, root, engine="toy")
    assert not root.root.exists()
    with pytest.raises(SearchNotFound, match="lorafront resume s"):
        root.existing("s")
    after = resume_search("s", root, engine="toy", budget=Budget(trials=5))
    assert [trial.reported for trial in after.trials[:3]] == [trial.reported for trial in before.trials]
    assert [trial.epoch for trial in after.complete] == [1, 1, 1, 8, 8]
    assert front_of(after)
    for trial in after.complete:
        assert trial.last is not None
        read_manifest(root.search("s").trial(trial.number, trial.epoch).checkpoint(trial.last.rows))
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs.db'}")
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    ranks = {run.data.tags["lorafront.trial"]: run.data.params for run in runs if "lorafront.trial" in run.data.tags}
    assert len(ranks) == len([run for run in runs if "lorafront.trial" in run.data.tags]) == 5
    for trial in after.complete:
        assert ranks[str(trial.number)]["learning_rate"] == str(trial.lora.learning_rate)
    assert sorted(run.data.tags["lorafront.lost"] for run in runs if "lorafront.lost" in run.data.tags) == ["3", "4"]


def test_an_export_goes_to_a_url_and_replaces_an_earlier_one(store: ObjectStore, tmp_path: Path) -> None:
    """What it no longer holds is removed; a place with other files is refused, and nothing is written there."""
    url = f"{store.url}/export"
    for names in (("trial-1", "trial-2"), ("trial-2", "trial-3")):
        with written_to(url, "index.json") as folder:
            for name in names:
                (folder / name).mkdir()
                (folder / name / "adapter").write_text(name)
            (folder / "index.json").write_text(json.dumps(names))
    assert store.find("export") == {"index.json", "trial-2/adapter", "trial-3/adapter"}
    (tmp_path / "other").write_text("mine")
    store.put(tmp_path / "other", "export/below/mine")
    with written_to(url, "index.json") as folder:
        (folder / "index.json").write_text("[]")
    assert store.find("export") == {"index.json", "below/mine"}
    store.put(tmp_path / "other", "full/other")
    with pytest.raises(InvalidInput, match="holds other files"), written_to(f"{store.url}/full", "index.json"):
        pass
    assert store.find("full") == {"other"}
    with written_to(str(tmp_path / "here"), "index.json") as folder:
        assert folder == tmp_path / "here"
