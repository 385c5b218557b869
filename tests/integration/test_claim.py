"""Claims on a real PostgreSQL: takeover, budget, fencing, contract."""

import json
import subprocess
import sys
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.budget import FAIL_REASON
from search.claim import ClaimedTrial, Claims, Nothing, trained_config
from search.config import StudyConfig, parse_study
from search.errors import ContractError, StudyError, StudyFailedError
from search.status import read_status
from search.study import Study, create_study, open_study
from storage.database import Database
from storage.errors import LeaseLostError
from storage.leases import Leases
from storage.trials import DurableStorage

DOCUMENT: dict[str, Any] = {
    "name": "s",
    "trials": 4,
    "space": {
        "optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
        "repetition": {"type": "categorical", "choices": [True, False]},
        "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "momentum": {"type": "float", "low": 0.5, "high": 0.9, "when": {"optimizer": "sgd"}},
    },
    "lease": {"ttl_seconds": 3600.0, "renew_seconds": 1.0, "max_attempts": 2},
    "max_failed_trials": 2,
}


def config(**changes: object) -> StudyConfig:
    """A small study file with some of its values changed."""
    return parse_study(DOCUMENT | changes, "study.toml")


def claims(study: Study, worker: str = "a", ttl_seconds: float = 3600) -> Claims:
    """The claims of one worker; with a ttl near zero its leases end at once."""
    return Claims(study, Leases(study.database, ttl_seconds), worker, "cpu")


def claimed(found: ClaimedTrial | Nothing) -> ClaimedTrial:
    """Require that there was a trial."""
    assert isinstance(found, ClaimedTrial)
    return found


@pytest.fixture
def study(database: Database) -> Study:
    """A fresh study with a budget of four trials."""
    return create_study(database, config(), "data-1")


def test_baseline_comes_first_with_the_notebooks_recipe(study: Study) -> None:
    """The first claim trains the notebook's own recipe; its values in the space are its params."""
    first = claimed(claims(study).claim())
    assert first.is_baseline
    assert first.config == study.config.baseline_config()
    assert first.trial.params == {"optimizer": "adam", "repetition": False, "lr": 0.003}


def test_budget_is_exact_for_one_worker(study: Study) -> None:
    """After `trials` ended trials there is nothing to claim."""
    mine = claims(study)
    for _ in range(4):
        trial = claimed(mine.claim())
        mine.report(trial, [0.5])
        mine.finish(trial, TrialState.COMPLETE, 0.5)
    assert mine.claim() is Nothing.SPENT
    assert [trial.number for trial in study.trials()] == [0, 1, 2, 3]


def test_running_trials_of_others_are_waited_for(study: Study) -> None:
    """A worker without a trial stays while others still work: one may be orphaned yet."""
    others = claims(study, "b")
    for _ in range(4):
        claimed(others.claim())
    assert claims(study).claim() is Nothing.WAIT


def test_verdict_that_got_lost_is_taken_again(database: Database) -> None:
    """A worker dies between the pruner's verdict and the trial's end: the next one prunes it."""
    pruner = {"name": "asha", "min_epochs": 1, "reduction": 2}
    study = create_study(database, config(name="p", pruner=pruner, trials=6), "data-1")
    mine = claims(study)
    for _ in range(3):
        good = claimed(mine.claim())
        assert not mine.report(good, [0.9])
        mine.finish(good, TrialState.COMPLETE, 0.9)
    dying = claims(study, "dying", ttl_seconds=0.001)
    assert dying.report(claimed(dying.claim()), [0.1])
    poor = claimed(mine.claim())
    assert poor.number == 3
    assert mine.report(poor, [0.1])
    mine.finish(poor, TrialState.PRUNED)
    assert study.trials()[3].system_attrs == {"completed_rung_0": 0.1}


def test_failed_trials_do_not_count(study: Study) -> None:
    """A trial that FAILs is replaced by a fresh one."""
    mine = claims(study)
    mine.finish(claimed(mine.claim()), TrialState.FAIL, attributes={FAIL_REASON: "broken"})
    for _ in range(4):
        mine.finish(claimed(mine.claim()), TrialState.COMPLETE, 0.5)
    assert mine.claim() is Nothing.SPENT


def test_study_stops_when_too_many_trials_fail(study: Study) -> None:
    """More failures than max_failed_trials stop the study and say why."""
    mine = claims(study)
    for _ in range(3):
        mine.finish(
            claimed(mine.claim()), TrialState.FAIL, attributes={FAIL_REASON: "no such file"}
        )
    with pytest.raises(StudyFailedError, match=r"3 trials failed.*no such file"):
        mine.claim()


def test_orphan_goes_on_under_its_number_and_parameters(study: Study) -> None:
    """A trial whose worker died is taken over, not copied."""
    claimed(claims(study, "alive").claim())
    orphan = claimed(claims(study, "dead", ttl_seconds=0.001).claim())
    same = claimed(claims(study, "b", ttl_seconds=0.001).claim())
    assert same.number == orphan.number == 1
    assert same.config == orphan.config
    assert same.trial.params == orphan.trial.params
    assert same.lease.token == orphan.lease.token + 1
    assert len(study.trials()) == 2


def test_zombie_can_write_nothing(study: Study) -> None:
    """A worker that was taken over can neither report nor end its old trial."""
    zombie = claims(study, "zombie", ttl_seconds=0.001)
    old = claimed(zombie.claim())
    new = claimed(claims(study, "b", ttl_seconds=0.001).claim())
    assert new.number == old.number
    with pytest.raises(LeaseLostError):
        zombie.report(old, [0.9])
    with pytest.raises(LeaseLostError):
        zombie.finish(old, TrialState.COMPLETE, 0.9)
    (trial,) = study.trials()
    assert trial.state == TrialState.RUNNING
    assert trial.intermediate_values == {}


def test_trial_that_kills_its_workers_fails(study: Study) -> None:
    """After max_attempts deaths a trial is told FAIL with the reason."""
    fatal = claimed(claims(study, "w0", ttl_seconds=0.001).claim()).number
    for death in range(2):
        found = claimed(claims(study, f"w{death + 1}", ttl_seconds=0.001).claim())
    trial = study.trials()[fatal]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs[FAIL_REASON] == "given up after 2 attempts: its worker died"
    assert found.number != fatal


def test_trial_whose_parameters_make_no_training_fails(study: Study) -> None:
    """It is told FAIL with the reason, blocks nobody, and is replaced."""
    mine = claims(study)
    claimed(mine.claim())
    study.optuna.enqueue_trial({"optimizer": "adam", "lr": 100.0})
    with pytest.warns(UserWarning, match="out of range"):
        assert mine.claim() is Nothing.WAIT
    failed = study.trials()[1]
    assert failed.state == TrialState.FAIL
    assert "no training has the parameters" in failed.user_attrs[FAIL_REASON]
    assert claimed(mine.claim()).number == 2


def test_failed_baseline_is_shown(study: Study) -> None:
    """Without a baseline there is nothing to compare with: the status says why it failed."""
    mine = claims(study)
    mine.finish(claimed(mine.claim()), TrialState.FAIL, attributes={FAIL_REASON: "no network"})
    assert read_status(study)["baseline"] == {"trial": 0, "value": None, "failed": "no network"}


def test_foreign_study_of_that_name_is_left_alone(database: Database) -> None:
    """What melsearch did not create it neither adopts nor changes."""
    create_study(database, config(name="other"), "data-1")
    foreign = optuna.create_study(storage=DurableStorage(database), study_name="s")
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(StudyError, match="that melsearch did not create"):
        create_study(database, config(), "data-1")
    assert foreign.user_attrs == {}


def test_crash_between_ask_and_lease_leaves_a_whole_trial(study: Study) -> None:
    """A RUNNING trial without lease and parameters is picked up and completed."""
    claimed(claims(study).claim())
    study.optuna.ask()  # as far as a killed worker came
    taken = claimed(claims(study, "b").claim())
    assert taken.number == 1
    assert {"optimizer", "lr"} <= set(taken.trial.params)
    assert trained_config(study, study.trials()[1]) == taken.config


def test_reports_are_idempotent_and_fill_gaps(study: Study) -> None:
    """What an outage kept back is sent later, and what was sent is not sent again."""
    mine = claims(study)
    trial = claimed(mine.claim())
    mine.report(trial, [0.1])
    mine.report(trial, [0.1, 0.2, 0.3])
    mine.report(trial, [0.1, 0.2, 0.3])
    assert study.trials()[0].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}


def test_finish_is_idempotent(study: Study) -> None:
    """A finish that is repeated, as after a lost commit, changes nothing."""
    mine = claims(study)
    trial = claimed(mine.claim())
    study.optuna.tell(trial.number, 0.7)  # the commit whose answer was lost
    mine.finish(trial, TrialState.COMPLETE, 0.7)
    assert study.trials()[0].value == 0.7
    assert Leases(study.database, 1).held("trial:") == []


def test_poor_trial_is_pruned_and_the_baseline_never(database: Database) -> None:
    """ASHA stops a trial that is below its peers; the baseline runs to its end."""
    study = create_study(database, config(trials=9), "data-1")
    mine = claims(study)
    baseline = claimed(mine.claim())
    assert not mine.report(baseline, [0.0, 0.0, 0.0])
    for value in (0.9, 0.8, 0.7):
        trial = claimed(mine.claim())
        mine.report(trial, [value])
    poor = claimed(mine.claim())
    assert mine.report(poor, [0.1])
    mine.finish(poor, TrialState.PRUNED)
    assert study.trials()[poor.number].state == TrialState.PRUNED


def test_less_is_better_where_the_objective_says_so(database: Database) -> None:
    """By EER the highest trial is pruned, and the lowest is the best, also for the baseline."""
    study = create_study(database, config(trials=9, objective="eer"), "data-1")
    mine = claims(study)
    baseline = claimed(mine.claim())
    mine.report(baseline, [0.5, 0.3, 0.4])
    for value in (0.1, 0.2, 0.3):
        trial = claimed(mine.claim())
        mine.report(trial, [value])
        mine.finish(trial, TrialState.COMPLETE, value)
    assert mine.report(claimed(mine.claim()), [0.9])
    status = read_status(open_study(database, "s"))
    assert (status["best"]["value"], status["baseline"]["value"]) == (0.1, 0.3)


def test_trial_is_not_pruned_at_its_last_epoch(database: Database) -> None:
    """Whoever has come to the end is COMPLETE, however poor: pruning would save nothing."""
    study = create_study(database, config(training={"epochs": 1}), "data-1")
    mine = claims(study)
    claimed(mine.claim())
    for value in (0.9, 0.8, 0.1):
        assert not mine.report(claimed(mine.claim()), [value])


def test_workers_that_start_together_propose_different_parameters(study: Study) -> None:
    """Each trial has a seed of its own."""
    claimed(claims(study, "a").claim())
    second, third = (claimed(claims(study, name).claim()) for name in "bc")
    assert second.trial.params["lr"] != third.trial.params["lr"]


def test_create_is_idempotent_and_extends_the_budget(study: Study, database: Database) -> None:
    """The same file opens the study; a larger budget raises it; there is one baseline."""
    assert create_study(database, config(), "data-1").budget() == 4
    assert create_study(database, config(trials=6), "data-1").budget() == 6
    assert study.budget() == 6
    assert len(study.trials()) == 1


def test_another_contract_is_refused_line_by_line(study: Study, database: Database) -> None:
    """Every difference is named, with both values."""
    space = DOCUMENT["space"] | {"lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True}}
    with pytest.raises(ContractError) as error:
        create_study(database, config(space=space), "data-2")
    assert "space.lr.high: study 0.01, here 0.1" in str(error.value)
    assert 'data_fingerprint: study "data-1", here "data-2"' in str(error.value)
    with pytest.raises(ContractError, match="trials: study 4, here 3"):
        create_study(database, config(trials=3), "data-1")


def test_unknown_study_names_the_known_ones(study: Study, database: Database) -> None:
    """A misspelt name shows what there is."""
    with pytest.raises(StudyError, match="'t'; there are: s"):
        open_study(database, "t")


def test_study_of_a_version_that_wrote_other_files_is_refused(
    study: Study, database: Database
) -> None:
    """What this version can't read of a frozen study is said, not shown as a traceback."""
    study.optuna.set_user_attr("melsearch:config", {"name": "s", "trials": "many"})
    with pytest.raises(ContractError, match=r"was frozen by version 0\.1\.0"):
        open_study(database, "s")


def test_status_has_the_promised_shape(study: Study) -> None:
    """`status --json` is one object of documented keys."""
    mine = claims(study)
    mine.finish(claimed(mine.claim()), TrialState.COMPLETE, 0.6, {"metrics": {"auc": 0.7}})
    claimed(mine.claim())
    Leases(study.database, 3600).take("worker:s:a", "a")
    status = json.loads(json.dumps(read_status(study)))
    assert status["counts"] == {
        "complete": 1, "pruned": 0, "failed": 0, "running": 1, "waiting": 0,
    }  # fmt: skip
    assert (status["study"], status["budget"]) == ("s", 4)
    assert status["best"]["value"] == 0.6
    assert status["best"]["metrics"] == {"auc": 0.7}
    assert status["baseline"] == {"trial": 0, "value": 0.6}
    (worker,) = status["workers"]
    assert (worker["id"], worker["trial"], worker["device"]) == ("a", 1, "cpu")
    assert status["eta_seconds"] is not None


CLAIMER = """
import os, random, sys
from optuna.trial import TrialState
from search.claim import Claims, ClaimedTrial, Nothing
from search.study import open_study
from storage.database import Database, parse_url
from storage.errors import LeaseLostError
from storage.leases import Leases
from storage.trials import DurableStorage

url, name = sys.argv[1:]
dice = random.Random(name)
study = open_study(Database(parse_url(url, {})), "s")
claims = Claims(study, Leases(study.database, 0.3), name, "cpu")
while (found := claims.claim()) is not Nothing.SPENT:
    if isinstance(found, ClaimedTrial):
        if dice.random() < 0.2:
            os.kill(os.getpid(), 9)
        try:
            claims.report(found, [0.5])
            claims.finish(found, TrialState.COMPLETE, dice.random())
        except LeaseLostError:
            pass  # so short a lease may end while we still work
"""


def test_processes_that_are_killed_keep_the_budget_exact(
    database: Database, database_url: str
) -> None:
    """Six processes, killed by SIGKILL at random and replaced, end exactly the budget."""
    document = DOCUMENT["lease"] | {"max_attempts": 1000}
    study = create_study(database, config(trials=25, lease=document), "data-1")

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", CLAIMER, database_url, name])

    processes = {name: start(name) for name in (f"w{number}" for number in range(6))}
    num_killed = 0
    while processes:
        name, process = next(iter(processes.items()))
        code = process.wait(120)
        del processes[name]
        assert code in (0, -9)
        if code == -9:
            num_killed += 1
            processes[f"{name}+"] = start(f"{name}+")
    trials = study.trials()
    assert num_killed > 0
    assert [trial.number for trial in trials] == list(range(25))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
