"""A study in PostgreSQL: the same as one in a file, of one driver, and patient with its server."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from optuna.exceptions import StorageInternalError
from servers import CONNECTIONS, PASSWORD, Postgres
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from lorafront.search import study_lock
from lorafront.search.database import VARIABLE, check_database, connected, place_of, reading
from lorafront.search.ownership import is_driven, owned
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import StudyTable, read_study
from lorafront.spaces.errors import InvalidInput, SearchOwned, StateUnreadable
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report


def search_file(name: str = "s", **changes: Any) -> SearchFile:
    return parse_search({"name": name, "model": "m", "data": {"path": "d"}, "sampler": "random", **changes})


def paths_of(root: Path, name: str = "s") -> SearchPaths:
    paths = RootPaths(root).search(name)
    paths.folder.mkdir(parents=True)
    return paths


def begun(paths: SearchPaths) -> StudyLedger:
    ledger = StudyLedger(paths.study_db, search_file(paths.name), create=True)
    ledger.begin_epoch()
    return ledger


def trained(ledger: StudyLedger) -> int:
    """Ask for a trial, start it, and tell what it measured; its number."""
    number, lora = asked(ledger)
    ledger.started(number)
    ledger.record_rung(number, Report(50, measured(lora)))
    ledger.tell(number, Report(100, measured(lora), Outcome.COMPLETE))
    return number


def asked(ledger: StudyLedger) -> tuple[int, LoraConfiguration]:
    found = ledger.ask()
    assert found is not None
    return found


def measured(lora: LoraConfiguration) -> dict[str, Any]:
    session = ToySession(lora)
    session.train(100)
    return dict(session.evaluate())


def told(table: StudyTable) -> list[Any]:
    """All but the times."""
    return [(trial.number, trial.state, trial.lora, trial.epoch, trial.rungs, trial.result) for trial in table.trials]


def values(paths: SearchPaths) -> list[tuple[Any, ...]]:
    query = "SELECT number, objective, value FROM trial_values JOIN trials USING (trial_id) WHERE study_id = {study}"
    with reading(paths.study_db) as read:
        return sorted(read(query))


def test_a_study_reads_as_one_in_a_file(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same asks and reports give the same trials, whoever stores them; folders say where, and none both."""
    there = paths_of(tmp_path / "there")
    with closing(begun(there)) as ledger:
        for _ in range(5):
            trained(ledger)
        asked(ledger)
    monkeypatch.delenv(VARIABLE)
    here = paths_of(tmp_path / "here")
    with closing(begun(here)) as ledger:
        for _ in range(5):
            trained(ledger)
        asked(ledger)
    assert told(read_study(there.study_db)) == told(read_study(here.study_db))
    assert values(there) == values(here)
    assert there.has_study()
    assert not there.study_db.exists()
    assert RootPaths(tmp_path / "there").names() == RootPaths(tmp_path / "here").names() == ["s"]
    with closing(StudyLedger(there.study_db, search_file(), create=False)) as ledger:
        assert trained(ledger) == 6


def test_replicates_go_where_their_search_is(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says by then."""
    there = paths_of(tmp_path)
    begun(there).close()
    monkeypatch.delenv(VARIABLE)
    here = paths_of(tmp_path, "here")
    begun(here).close()
    for original in (there, here):
        monkeypatch.setenv(VARIABLE, "" if original is there else postgres.url())
        own = paths_of(tmp_path, f"{original.name}-confirm")
        StudyLedger(own.study_db, search_file(own.name, confirms=original.name), create=True).close()
        assert bool(place_of(own.study_db).url) == bool(place_of(original.study_db).url)


def test_searches_of_one_name_are_strangers(postgres: Postgres, tmp_path: Path) -> None:
    """Roots may have a search of the same name in one database."""
    one, other = paths_of(tmp_path / "one"), paths_of(tmp_path / "other")
    with closing(begun(one)) as ledger, closing(begun(other)):
        trained(ledger)
    assert [len(read_study(paths.study_db).trials) for paths in (one, other)] == [1, 0]
    assert place_of(one.study_db).study != place_of(other.study_db).study


def test_a_search_has_one_driver_wherever_it_is(postgres: Postgres, tmp_path: Path) -> None:
    """F31: who comes second is refused, though it has no lock file in common with the first."""
    paths = paths_of(tmp_path / "one")
    elsewhere = paths_of(tmp_path / "two")
    with closing(begun(paths)):
        (elsewhere.folder / "study.json").write_bytes((paths.folder / "study.json").read_bytes())
        with pytest.raises(SearchOwned, match="another process"), owned(elsewhere):
            pass
        with pytest.raises(SearchOwned, match="another driver"):
            StudyLedger(elsewhere.study_db, search_file(), create=False)
        assert is_driven(elsewhere)
    assert not is_driven(elsewhere)
    with owned(elsewhere), closing(StudyLedger(elsewhere.study_db, search_file(), create=False)) as ledger:
        assert trained(ledger) == 0


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_a_server_that_restarts_is_waited_for(postgres: Postgres, tmp_path: Path, how: str) -> None:
    """F15, F16: what is written while it is away is written when it is back, once."""
    paths = paths_of(tmp_path)
    with closing(begun(paths)) as ledger:
        trained(ledger)
        postgres.do(how)
        back = threading.Timer(2, postgres.start)
        back.start()
        assert [trained(ledger) for _ in range(3)] == [1, 2, 3]
        back.join()
        before = told(read_study(paths.study_db))
    assert [trial[1] for trial in before] == ["COMPLETE"] * 4
    assert told(read_study(paths.study_db)) == before


@pytest.mark.parametrize("nth", range(1, 15))
def test_what_was_not_acknowledged_is_done_once(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """F3: a connection that breaks right after any one commit costs neither a second trial nor a second result."""
    paths = paths_of(tmp_path)
    real, commits = Session.commit, []

    def committed_and_lost(session: Session) -> None:
        real(session)
        commits.append(1)
        if len(commits) == nth:
            raise OperationalError("", None, Exception("the connection was lost"))

    with closing(begun(paths)) as ledger:
        monkeypatch.setattr(Session, "commit", committed_and_lost)
        assert [trained(ledger), trained(ledger)] == [0, 1]
        assert len(commits) >= nth
    table = read_study(paths.study_db)
    assert [(trial.number, trial.state) for trial in table.trials] == [(0, "COMPLETE"), (1, "COMPLETE")]
    assert len(values(paths)) == 2 * len(table.search.objective_list)


def test_who_was_taken_over_writes_nothing_more(postgres: Postgres, tmp_path: Path) -> None:
    """A driver that lost its connection, and whose search another one has begun meanwhile, is refused."""
    paths = paths_of(tmp_path)
    with closing(begun(paths)) as first:
        trained(first)
        cut_off(postgres)
        with closing(StudyLedger(paths.study_db, search_file(), create=False)) as second:
            second.begin_epoch()
            with pytest.raises(StorageInternalError, match="another driver"):
                asked(first)
            trained(second)
        with pytest.raises(StorageInternalError, match="taken over"):  # also when that one has ended
            asked(first)
    assert len(read_study(paths.study_db).trials) == 2


def test_who_was_replaced_before_it_had_begun_writes_nothing(postgres: Postgres, tmp_path: Path) -> None:
    """The fence is there from the moment at which a study is opened, whether or not the driver begins an epoch."""
    paths = paths_of(tmp_path)
    with closing(StudyLedger(paths.study_db, search_file(), create=True)) as first:
        cut_off(postgres)
        StudyLedger(paths.study_db, search_file(), create=False).close()
        with pytest.raises(StorageInternalError, match="taken over"):
            first.begin_epoch()


def test_first_searches_of_a_database_do_not_collide(postgres: Postgres, tmp_path: Path) -> None:
    """Four that open an empty database at once all find, or make, its tables."""
    with closing(connected(postgres.url(), 0)) as database:
        database.autocommit = True
        database.execute("DROP SCHEMA public CASCADE")
        database.execute("CREATE SCHEMA public")
    names = ["a", "b", "c", "d"]
    with ThreadPoolExecutor(len(names)) as pool:
        ledgers = [*pool.map(begun, [paths_of(tmp_path, name) for name in names])]
    for ledger in ledgers:
        ledger.close()
    assert sorted(RootPaths(tmp_path).names()) == names


def test_a_study_whose_server_is_away_cannot_be_owned(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether it has a driver, so nothing of it is touched."""
    paths = paths_of(tmp_path)
    begun(paths).close()
    place = paths.folder / "study.json"
    place.write_text(place.read_text().replace(f":{postgres.port}/", ":1/"))
    monkeypatch.setattr(study_lock, "READ_PATIENCE", 0.5)
    with pytest.raises(StateUnreadable, match="cannot be reached"), owned(paths):
        pass


def test_who_was_cut_off_and_not_replaced_goes_on(postgres: Postgres, tmp_path: Path) -> None:
    """A lost connection alone costs nothing: the driver takes its lock again."""
    with closing(begun(paths_of(tmp_path))) as ledger:
        trained(ledger)
        cut_off(postgres)
        assert trained(ledger) == 1


def cut_off(postgres: Postgres) -> None:
    """End every connection, as a network that fails."""
    with closing(connected(postgres.url(), 0)) as database:
        database.autocommit = True
        database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                         "WHERE usename = current_user AND pid <> pg_backend_pid()")  # fmt: skip


def test_a_full_server_is_waited_for(postgres: Postgres, tmp_path: Path) -> None:
    """F17: without a free connection a check says so, and a driver waits for one."""
    paths = paths_of(tmp_path)
    with closing(begun(paths)) as ledger, ExitStack() as others:
        cut_off(postgres)
        for _ in range(CONNECTIONS):
            with suppress(psycopg.OperationalError):
                others.enter_context(closing(connected(postgres.url(), 0)))
        with pytest.raises(InvalidInput, match=r"too many clients|connection slots"):
            check_database()
        threading.Timer(2, others.close).start()
        start = time.monotonic()
        assert trained(ledger) == 0
        assert time.monotonic() - start > 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://lorafront:hunter2@db/lorafront", "PGPASSWORD"),
        ("postgresql://lorafront@db/lorafront?password=hunter2", "PGPASSWORD"),
        ("mysql://lorafront@db/lorafront", "must be postgresql://"),
        ("postgresql://lorafront@db", "must be postgresql://"),
        ("postgresql:///lorafront", "must be postgresql://"),
        ("postgresql://lorafront@db/lorafront?sslpassword=hunter2", "PGPASSWORD"),
        ("lorafront", "must be postgresql://"),
        ("postgresql://lorafront@[db/lorafront", "no URL"),
        ("postgresql://lorafront@127.0.0.1:1/lorafront", "cannot be reached"),
    ],
)
def test_a_database_that_cannot_be_is_refused(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything begins, in one line, and without the password."""
    monkeypatch.setenv(VARIABLE, url)
    with pytest.raises(InvalidInput, match=words) as refused:
        check_database()
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_role_without_rights_is_told_what_it_lacks(postgres: Postgres) -> None:
    """With the statement that gives it the right."""
    check_database()
    with closing(connected(postgres.url(), 0)) as database:
        database.autocommit = True
        database.execute("REVOKE CREATE ON SCHEMA public FROM current_user, pg_database_owner")
        with pytest.raises(InvalidInput, match=r"lorafront may not create tables in schema public .*GRANT CREATE"):
            check_database()
        database.execute("GRANT CREATE ON SCHEMA public TO current_user")
    check_database()


def test_a_study_that_is_not_there_is_no_search(postgres: Postgres, tmp_path: Path) -> None:
    """A driver that died before it had made its study leaves a folder that says so."""
    paths = paths_of(tmp_path)
    begun(paths).close()
    place = paths.folder / "study.json"
    place.write_text(place.read_text().replace(place_of(paths.study_db).study, "gone"))
    with pytest.raises(StateUnreadable, match=r"there is no study gone .*another server"):
        read_study(paths.study_db)
    place.write_text("{")
    with pytest.raises(StateUnreadable, match=r"study\.json cannot be read"):
        read_study(paths.study_db)


def test_no_password_is_left_anywhere(postgres: Postgres, tmp_path: Path) -> None:
    """Neither in the folder nor in the database."""
    paths = paths_of(tmp_path)
    with closing(begun(paths)) as ledger:
        trained(ledger)
    assert os.environ["PGPASSWORD"] == PASSWORD
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        assert b"planted" not in file.read_bytes()
    with reading(paths.study_db) as read:
        for table in ("study_user_attributes", "study_system_attributes", "trial_user_attributes"):
            assert "planted" not in str(read(f"SELECT * FROM {table}"))
