"""Connections lost at COMMIT: before the server has it, or before the client hears of it."""

from collections.abc import Callable
from threading import Timer
from typing import Any, Literal

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from storage.database import Database
from storage.errors import DatabaseUnavailableError
from storage.leases import Lease, Leases
from storage.trials import DurableStorage
from tests.cutter import Cutter

When = Literal["before", "after"]
both = pytest.mark.parametrize("when", ["before", "after"])


@pytest.fixture
def storage(cutter: tuple[Cutter, Database]) -> DurableStorage:
    """Our storage, through the proxy."""
    return DurableStorage(cutter[1])


def new_study(storage: DurableStorage) -> int:
    """Make an empty study."""
    return storage.create_new_study([StudyDirection.MAXIMIZE], "s")


Call = Callable[[DurableStorage, int, int], Any]
Check = Callable[[DurableStorage, int, FrozenTrial, Any], bool]
WRITES: dict[str, tuple[bytes, Call, Check]] = {
    "create_new_trial": (
        b"INSERT INTO trials",
        lambda s, study, trial: s.create_new_trial(study),
        lambda s, study, trial, new: [t._trial_id for t in s.get_all_trials(study)][1:] == [new],
    ),
    "create_new_study": (
        b"INSERT INTO studies",
        lambda s, study, trial: s.create_new_study([StudyDirection.MINIMIZE], "t"),
        lambda s, study, trial, new: s.get_study_id_from_name("t") == new,
    ),
    "delete_study": (
        b"DELETE FROM studies",
        lambda s, study, trial: s.delete_study(study),
        lambda s, study, trial, none: s.get_all_studies() == [],
    ),
    "set_trial_state_values": (
        b"UPDATE trials",
        lambda s, study, trial: s.set_trial_state_values(trial, TrialState.COMPLETE, [0.5]),
        lambda s, study, trial, was_set: was_set and trial.value == 0.5,
    ),
    "set_trial_param": (
        b"INSERT INTO trial_params",
        lambda s, study, trial: s.set_trial_param(trial, "x", 0.25, FloatDistribution(0, 1)),
        lambda s, study, trial, none: trial.params == {"x": 0.25},
    ),
    "set_trial_intermediate_value": (
        b"INSERT INTO trial_intermediate_values",
        lambda s, study, trial: s.set_trial_intermediate_value(trial, 1, 0.75),
        lambda s, study, trial, none: trial.intermediate_values == {1: 0.75},
    ),
    "set_trial_user_attr": (
        b"INSERT INTO trial_user_attributes",
        lambda s, study, trial: s.set_trial_user_attr(trial, "key", [1]),
        lambda s, study, trial, none: trial.user_attrs == {"key": [1]},
    ),
    "set_study_user_attr": (
        b"INSERT INTO study_user_attributes",
        lambda s, study, trial: s.set_study_user_attr(study, "key", [1]),
        lambda s, study, trial, none: s.get_study_user_attrs(study) == {"key": [1]},
    ),
}


@both
@pytest.mark.parametrize("name", WRITES)
def test_write_is_done_exactly_once(
    name: str, when: When, cutter: tuple[Cutter, Database], storage: DurableStorage
) -> None:
    """The call returns as if nothing had happened, and has been done once."""
    statement, write, is_done = WRITES[name]
    study = new_study(storage)
    trial = storage.create_new_trial(study)
    cutter[0].cut_commit(when, of=statement)
    answer = write(storage, study, trial)
    assert cutter[0].num_commits_cut == 1
    is_gone = name == "delete_study"
    newest = optuna.trial.create_trial(value=0) if is_gone else storage.get_trial(trial)
    assert is_done(storage, study, newest, answer)


@both
def test_waiting_trial_is_popped_by_one(
    when: When, cutter: tuple[Cutter, Database], storage: DurableStorage
) -> None:
    """Whoever made a WAITING trial RUNNING learns that it is his, and nobody else does."""
    study = new_study(storage)
    trial = storage.create_new_trial(study, optuna.trial.create_trial(state=TrialState.WAITING))
    cutter[0].cut_commit(when, of=b"UPDATE trials")
    assert storage.set_trial_state_values(trial, TrialState.RUNNING) is True
    assert cutter[0].num_commits_cut == 1
    assert storage.set_trial_state_values(trial, TrialState.RUNNING) is False


@both
def test_plain_optuna_gets_it_wrong(when: When, cutter: tuple[Cutter, Database]) -> None:
    """What our storage is for: Optuna's own makes two trials of one, or raises."""
    DurableStorage(cutter[1])  # makes the tables
    url = cutter[1].url.render_as_string(hide_password=False)
    plain = optuna.storages.RDBStorage(url, {"pool_pre_ping": True})
    study = plain.create_new_study([StudyDirection.MAXIMIZE])
    cutter[0].cut_commit(when, of=b"INSERT INTO trials")
    trial = plain.create_new_trial(study)
    assert len(plain.get_all_trials(study)) == (2 if when == "after" else 1)
    cutter[0].cut_commit(when, of=b"INSERT INTO trial_user_attributes")
    with pytest.raises(optuna.exceptions.StorageInternalError):
        plain.set_trial_user_attr(trial, "key", 1)
    plain.engine.dispose()


@both
def test_lease_is_taken_exactly_once(
    when: When, cutter: tuple[Cutter, Database], storage: DurableStorage
) -> None:
    """A lost answer to a take leaves nobody in doubt whose the lease is."""
    leases = Leases(cutter[1], 3600)
    cutter[0].cut_commit(when, of=b"insert into melsearch_lease")
    if when == "before":
        with pytest.raises(DatabaseUnavailableError):
            leases.take("trial:s:0", "a")
        assert leases.held("") == []
    else:
        assert leases.take("trial:s:0", "a") == Lease("trial:s:0", "a", 1, 0)
        assert [held.holder for held in leases.held("")] == ["a"]


def test_commit_is_looked_up_through_an_outage(
    cutter: tuple[Cutter, Database], storage: DurableStorage
) -> None:
    """The server is gone when the answer is asked for: the call waits for it, and is right."""
    study = new_study(storage)
    proxy = cutter[0]
    proxy.cut_commit("after", of=b"INSERT INTO trials")
    looked = []
    was_done = cutter[1]._was_done

    def look_late(mark: Any) -> bool:
        proxy.refuse(True)
        looked.append(mark)
        Timer(1.0, proxy.refuse, [False]).start()
        return was_done(mark)

    cutter[1]._was_done = look_late  # type: ignore[method-assign]
    trial = storage.create_new_trial(study)
    assert looked
    assert [t._trial_id for t in storage.get_all_trials(study)] == [trial]
