"""Optuna's storages as a study needs them: SQLite that survives a power cut, PostgreSQL that outlasts a restart."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from lorafront.search.database import CONNECTION, StudyPlace, is_lost, one_line, postgres_error
from lorafront.search.study_lock import lock_of
from lorafront.spaces.errors import SearchOwned, StateUnreadable

PATIENCE = 60.0  # seconds that a server may be away
LONGEST = 2.0  # seconds between two tries
TOKEN = "token"  # noqa: S105  # attribute of a trial: by it one is found whose creation was not acknowledged


def sqlite_storage(path: Path) -> RDBStorage:
    """SQLite with WAL and synchronous=FULL: a commit survives a power cut, readers never wait for the writer.

    Set through `creator`: a listener on SQLAlchemy's engine leaves `journal_mode=delete`.
    """

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"creator": connect})


def _patient(method: Callable[..., Any]) -> Any:
    @wraps(method)
    def tried(self: PostgresStorage, *args: Any, **kwargs: Any) -> Any:
        return self.patiently(partial(method, self, *args, **kwargs))

    return tried


class PostgresStorage(RDBStorage):
    """A study in PostgreSQL, written by one driver; while the server is away for a while, it waits.

    What is done again after an answer was lost has the effect of once.
    """

    def __init__(self, place: StudyPlace) -> None:
        """Take the study's lock, and make the tables where there are none.

        Raises:
            SearchOwned: another driver is alive.
            StateUnreadable: the server cannot be reached, or refuses.
        """
        self._away = False  # patience has ended, and it has not answered since
        try:
            self.lock, self._own = lock_of(place)
        except postgres_error() as error:
            raise StateUnreadable(f"{place} cannot be reached: {one_line(error)}") from error
        address = f"postgresql+psycopg://{place.url.split('://', 1)[1]}"
        engine = {"pool_pre_ping": True, "connect_args": CONNECTION}

        def set_up() -> None:
            with self.lock.alone():
                super(PostgresStorage, self).__init__(address, engine_kwargs=engine)

        try:
            self.patiently(set_up)
        except (StorageInternalError, SQLAlchemyError, RuntimeError) as error:
            self.give_back()
            raise StateUnreadable(f"{place} cannot be opened as a study: {one_line(_cause(error))}") from error

    def give_back(self) -> None:
        """The lock, where it was taken for this."""
        if self._own:
            self.lock.release()

    def patiently(self, work: Callable[[], Any]) -> Any:
        """Do that under the lock, again and again while the server is away.

        Raises:
            StorageInternalError: the server stays away, or another driver has taken over.
        """
        end, pause = time.monotonic() + (0 if self._away else PATIENCE), 0.1
        while True:
            try:
                self.lock.hold()
                done = work()
            except SearchOwned as error:
                raise StorageInternalError(str(error)) from error
            except (StorageInternalError, DBAPIError, postgres_error()) as error:
                if not _is_away(error):
                    raise
                if time.monotonic() > end:
                    self._away = True  # the next one does not wait as long again
                    said = one_line(_cause(error))
                    raise StorageInternalError(f"the database was away for {PATIENCE:.0f} seconds ({said})") from error
            else:
                self._away = False
                return done
            time.sleep(pause)
            pause = min(LONGEST, 2 * pause)

    create_new_study = _patient(RDBStorage.create_new_study)
    set_study_user_attr = _patient(RDBStorage.set_study_user_attr)
    set_study_system_attr = _patient(RDBStorage.set_study_system_attr)
    get_study_id_from_name = _patient(RDBStorage.get_study_id_from_name)
    get_study_directions = _patient(RDBStorage.get_study_directions)
    get_study_user_attrs = _patient(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _patient(RDBStorage.get_study_system_attrs)
    get_all_trials = _patient(RDBStorage.get_all_trials)
    get_trial = _patient(RDBStorage.get_trial)
    set_trial_user_attr = _patient(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _patient(RDBStorage.set_trial_system_attr)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's; a trial whose creation was not acknowledged is found, and not made twice."""
        if template_trial is None:
            raise ValueError("a trial without a configuration")
        template_trial.set_user_attr(TOKEN, uuid.uuid4().hex)
        self._again = False
        found: int = self.patiently(partial(super().create_new_trial, study_id, template_trial))
        return found

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Any) -> Any:
        """Optuna's step of `create_new_trial` that holds the row of the study; it tries five times by itself."""
        if self._again and template_trial is not None:
            self.lock.hold()
            attribute = models.TrialUserAttributeModel
            there = session.query(models.TrialModel).join(attribute).filter(
                models.TrialModel.study_id == study_id,
                attribute.key == TOKEN,
                attribute.value_json == json.dumps(template_trial.user_attrs[TOKEN]),
            )  # fmt: skip
            if (found := there.one_or_none()) is not None:
                return found
        self._again = True
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; what was told and not acknowledged is told."""

        def tell() -> bool:
            try:
                tries.append(1)
                return super(PostgresStorage, self).set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if len(tries) == 1 or super(PostgresStorage, self).get_trial(trial_id).state is not state:
                    raise
                return True

        tries: list[int] = []
        done: bool = self.patiently(tell)
        return done


def _cause(error: BaseException) -> BaseException:
    """What the database said: Optuna wraps what SQLAlchemy raises."""
    return error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error


def _is_away(error: BaseException) -> bool:
    """A connection that was lost or refused, which another one may mend."""
    cause = _cause(error)
    away = isinstance(cause, (OperationalError, InterfaceError))
    return is_lost(cause) or away or bool(isinstance(cause, DBAPIError) and cause.connection_invalidated)
