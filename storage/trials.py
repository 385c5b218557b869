"""Optuna's storage, as it outlives an outage: each call ends as if the database had been there.

Optuna raises where a connection is lost, and repeats blindly where it does repeat: it makes a trial
twice when only the answer to the first commit was lost.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy import orm

from storage.database import Database
from storage.schema import ensure_schema, known_by_optuna

# It complains with whole statements of reads that are repeated anyway.
logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)

_REPEATABLE = (
    "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_directions", "get_study_user_attrs",
    "get_study_system_attrs", "get_all_studies", "_set_trial_param",
    "get_trial_id_from_study_id_trial_number", "get_trial_param", "set_trial_intermediate_value",
    "set_trial_user_attr", "set_trial_system_attr", "get_trial", "_get_trials",
    "_get_best_trial_id", "get_trial_user_attrs", "get_trial_system_attrs", "record_heartbeat",
    "_get_stale_trial_ids",
)  # fmt: skip
"""Done twice they are as done once. All other calls are made of these."""
_ONCE = ("create_new_study", "delete_study", "_create_new_trial", "set_trial_state_values")
"""Done twice they are wrong: they leave a mark with their commit, by which it can be looked up."""


class _Session(orm.Session):
    """Optuna's session: on its thread's connection, behind its fence, with sure commits."""

    @property
    def _database(self) -> Database:
        database: Database = self.info["database"]
        return database

    def get_bind(self, *_: Any, **__: Any) -> sa.Connection | sa.Engine:
        return self._database.bind()

    def commit(self) -> None:
        self._database.mark_if_once(self.execute)
        self._database.commit(super().commit)


@sa.event.listens_for(_Session, "after_begin")
def _pass_fence(session: _Session, _: object, connection: sa.Connection) -> None:
    session._database.pass_fence(connection)


class DurableStorage(RDBStorage):
    """Optuna's trials in a database, safe to use from threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.repeat(self._set_up)
        self.scoped_session = orm.scoped_session(
            orm.sessionmaker[orm.Session](class_=_Session, info={"database": database})
        )

    def _set_up(self) -> None:
        ensure_schema(self._database)
        url = self._database.url.render_as_string(hide_password=False)
        pool = self._database.engine.pool
        with known_by_optuna(self._database):
            super().__init__(url, {"pool": pool}, skip_table_creation=True)

    def __getstate__(self) -> dict[Any, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        database = Database(sa.make_url(state["url"]))
        database.outage.ends()  # it was reached before
        self.__init__(database)  # type: ignore[misc]


def _durable(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def call(self: DurableStorage, *args: Any, **kwargs: Any) -> Any:
        def try_it() -> Any:
            with self._database.as_optuna(is_once=name in _ONCE):
                return method(self, *args, **kwargs)

        return self._database.repeat(try_it)

    return call


for _name in _REPEATABLE + _ONCE:
    setattr(DurableStorage, _name, _durable(_name))
