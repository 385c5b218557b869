"""The storm's invariants hold for a study that went well, and each breach of one is found."""

from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from benchmarks.chaos.arm import Arm, Round, Storm
from benchmarks.chaos.audit import install
from benchmarks.chaos.crew import Crew, Life
from benchmarks.chaos.evidence import gather
from benchmarks.chaos.invariants import check
from benchmarks.chaos.server import Server
from benchmarks.chaos.stage import TTL_SECONDS, storm_study
from benchmarks.chaos.volume import Volume
from benchmarks.chaos.weather import Exposed
from search.claim import ClaimedTrial, Claims
from search.study import create_study, open_study
from storage.database import Database, parse_url
from storage.leases import Leases
from tests.cutter import Cutter

_PID = 4242
_WORKER = f"host-{_PID}-ab12"
_ADD_ROLE = """
do $$ begin create role w0 superuser login; exception when duplicate_object then null; end $$"""


@pytest.fixture
def arm(database_url: str, tmp_path: Path) -> Arm:
    """An arm with one study of one trial, nothing claimed yet; its only worker is w0."""
    server = Server(tmp_path, database_url)
    crew = Crew(1, lambda worker, start: [])
    crew.lives.append(Life(0, _PID, tmp_path / "log", 0.0))
    exposed = Exposed(crew, server, Cutter(tmp_path), Volume(tmp_path, is_own=False))
    arm = Arm("ours", tmp_path, "f" * 16, Storm(1, 1, 1, 1, 1.0, 1.0), exposed)
    config = storm_study("s", 1, 1)
    database = Database(parse_url(database_url, {}))
    create_study(database, config, arm.fingerprint)
    database.close()
    install(server)
    server.query(_ADD_ROLE)
    (tmp_path / "logs").mkdir()
    arm.rounds.append(Round(config, tmp_path / "logs", has_ended=True))
    return arm


def train(arm: Arm, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Claim the trial as w0, report all its epochs and end it; `meanwhile` is called in between."""
    url = arm.exposed.server.url.replace("//postgres@", "//w0@")
    database = Database(parse_url(url, {}))
    study = open_study(database, "s")
    claims = Claims(study, Leases(database, TTL_SECONDS), _WORKER, "cpu")
    claimed = claims.claim()
    assert isinstance(claimed, ClaimedTrial)
    values = [epoch / 100 for epoch in range(1, claimed.config.epochs + 1)]
    claims.report(claimed, values)
    meanwhile()
    claims.finish(claimed, TrialState.COMPLETE, max(values))
    database.close()


def broken(arm: Arm) -> set[str]:
    """Return the names of the invariants that are broken."""
    return {name for name, breaches in check(gather(arm)).items() if breaches}


def test_study_that_went_well_breaks_nothing(arm: Arm) -> None:
    """The invariants are no stricter than what a worker does."""
    train(arm)
    assert broken(arm) == set()


@pytest.mark.parametrize(
    ("deed", "invariants"),
    [
        (
            "delete from trial_intermediate_values where step = 3",
            {"no_report_is_missing", "no_report_is_altered", "only_holders_write"},
        ),
        (
            "update trial_intermediate_values set intermediate_value = 0 where step = 3",
            {"no_report_is_altered", "only_holders_write"},
        ),
        ("update trial_values set value = 1", {"each_is_told_once"}),
        (
            "update trials set state = 'RUNNING'",
            {"budget_is_exact", "none_is_left", "each_is_told_once"},
        ),
        (
            "update trials set number = 7",
            {"none_is_left", "each_is_told_once", "only_holders_write"},
        ),
        (
            "insert into trials (number, study_id, state) select 1, study_id, 'FAIL' from trials",
            {"only_holders_write"},
        ),
        (
            "insert into trials (number, study_id, state) "
            "select 1, study_id, 'WAITING' from trials",
            {"none_is_left", "each_is_told_once"},
        ),
    ],
)
def test_breach_after_the_end_is_found(arm: Arm, deed: str, invariants: set[str]) -> None:
    """What should not be done to an ended study shows in the invariants that it breaks."""
    train(arm)
    arm.exposed.server.query(deed)
    assert broken(arm) == invariants


@pytest.mark.parametrize(
    ("deed", "undo", "invariants"),
    [
        (
            "update melsearch_lease set holder = 'thief-1-ab', token = token + 1",
            "update melsearch_lease set holder = 'host-4242-ab12', token = token - 1",
            {"no_two_hold_a_lease", "tokens_rise_by_one"},
        ),
        (
            "insert into trial_intermediate_values "
            "(trial_id, step, intermediate_value, intermediate_value_type) "
            "select trial_id, 1000, 0.5, 'FINITE' from trials",
            "delete from trial_intermediate_values where step = 1000",
            {"only_holders_write", "no_report_is_altered"},
        ),
    ],
)
def test_breach_during_a_training_is_found(
    arm: Arm, deed: str, undo: str, invariants: set[str]
) -> None:
    """A stolen lease and a stranger's report are found, though nothing of them is left."""

    def meddle() -> None:
        arm.exposed.server.query(deed)
        arm.exposed.server.query(undo)

    train(arm, meanwhile=meddle)
    assert broken(arm) == invariants


def test_study_with_running_workers_has_not_ended(arm: Arm) -> None:
    """A study that its workers don't leave in calm weather is a breach of its own."""
    train(arm)
    arm.rounds[-1].has_ended = False
    assert broken(arm) == {"each_study_ends"}
