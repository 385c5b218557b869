"""The service in containers: workers that finish, die, are stopped, scaled and cut off."""

import base64
import json
from http.client import HTTPConnection
from typing import Any

import psycopg2
import pytest

from tests.compose.stack import PASSWORD, Stack, docker, give_to, inspect, read_log

FILES = {
    "GPU": "docker-compose.yml",
    "CPU": "docker-compose.yml:deploy/cpu.yml",
    "many hosts": "docker-compose.yml:deploy/hosts.yml",
    "further host, GPU": "docker-compose.worker.yml",
    "further host, CPU": "docker-compose.worker.yml:deploy/worker-cpu.yml",
}


def assert_whole(status: dict[str, Any], budget: int) -> None:
    """Require exactly the budget, all of it complete, and nobody at work."""
    assert status["budget"] == budget
    assert status["counts"] == {
        "complete": budget, "pruned": 0, "failed": 0, "running": 0, "waiting": 0,
    }  # fmt: skip
    assert status["workers"] == []


def assert_left_with_0(stack: Stack) -> None:
    """Require that every worker has left because there was nothing more to do."""
    assert {state["ExitCode"] for state in stack.states("worker")} == {0}


def ask(port: int, method: str, path: str, password: str | None) -> tuple[int, bytes]:
    """Send one request to the dashboard as the host sees it; return status and body."""
    headers = {}
    if password is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(f"me:{password}".encode()).decode()
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_compose_files_are_valid(stack: Stack, files: str) -> None:
    """`docker compose config` accepts each combination that the documentation names."""
    changes = {
        "COMPOSE_FILE": files,
        "DB_ADDRESS": "127.0.0.1",
        "MELSEARCH_STORAGE": "postgresql://melsearch@db.example/melsearch",
    }
    stack.compose("config", "--quiet", environ=changes)


def test_gpus_are_reserved_unless_the_cpu_file_is_named(stack: Stack) -> None:
    """Every service that computes has all GPUs; with deploy/cpu.yml none asks for any."""
    for files, expected in ((FILES["GPU"], {"worker", "train", "predict"}), (FILES["CPU"], set())):
        text = stack.compose(
            "--profile", "tools", "config", "--format", "json", environ={"COMPOSE_FILE": files}
        )
        services = json.loads(text)["services"]
        reserving = {
            name
            for name, service in services.items()
            for device in _devices(service)
            if (device["driver"], device["count"]) == ("nvidia", -1)
        }
        assert reserving == expected


def _devices(service: dict[str, Any]) -> list[dict[str, Any]]:
    resources = service.get("deploy", {}).get("resources", {})
    return list(resources.get("reservations", {}).get("devices", []))


def test_without_a_password_nothing_starts(stack: Stack) -> None:
    """`up` without MELSEARCH_PASSWORD stops with a message that says so."""
    done = stack.run("up", "--detach", environ={"MELSEARCH_PASSWORD": ""})
    assert done.returncode != 0
    assert "MELSEARCH_PASSWORD" in done.stderr
    assert ".env" in done.stderr
    assert stack.containers() == []


def test_runs_of_somebody_else_are_refused(stack: Stack) -> None:
    """A folder that isn't ours to take is left as it is, and the message says what to set."""
    others = stack.folder / "others"
    others.mkdir(mode=0o755)
    give_to(others, "1234:1234")
    done = stack.run("run", "--rm", "--no-TTY", "runs", environ={"RUNS_DIR": str(others)})
    assert done.returncode == 2
    assert "1234:1234" in done.stderr
    assert "MELSEARCH_UID" in done.stderr
    assert others.stat().st_uid == 1234


def test_four_workers_finish_an_exact_budget(stack: Stack) -> None:
    """Four workers share six trials; then all that comes after a search works, on the host's runs.

    Meanwhile nothing runs as root or may write its root file system, the database can't be
    reached from the host, and the dashboard asks for the password.
    """
    stack.write_study("whole", trials=6, epochs=30)
    stack.up(4)
    stack.wait_for_epoch(1)
    assert_safe(stack)
    assert_guarded(stack)
    stack.wait_for_end()
    assert_left_with_0(stack)
    assert_whole(stack.status(), 6)
    trainers = {event["worker"] for event in stack.events("worker_left") if event["ended"]}
    assert len(trainers) > 1, "one worker alone did it all"
    assert_submission(stack)


def assert_safe(stack: Stack) -> None:
    """Require least rights of every container, and no way from the host to the database."""
    for container in stack.containers():
        found = inspect(container)
        config, limits = found["Config"], found["HostConfig"]
        service = config["Labels"]["com.docker.compose.service"]
        assert limits["ReadonlyRootfs"], service
        assert limits["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in limits["SecurityOpt"], service
        if service == "runs":  # hands ./runs over, and has ended before the others start
            capabilities = [name.removeprefix("CAP_") for name in limits["CapAdd"]]
            assert (capabilities, limits["NetworkMode"]) == (["CHOWN"], "none")
            assert found["State"]["Status"] == "exited"
            continue
        assert config["User"] not in ("", "0", "root", "0:0"), service
        assert not limits["CapAdd"], service
        if found["State"]["Running"]:
            assert docker("exec", container, "id", "-u").strip() == config["User"].split(":")[0]
            assert "Read-only" in _fails_to_write(container, "/etc/passwd"), service
    (database,) = stack.containers("db")
    assert docker("port", database) == ""
    (network,) = inspect(database)["NetworkSettings"]["Networks"].values()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(
            host=network["IPAddress"], user="melsearch", password=PASSWORD, connect_timeout=3
        )


def _fails_to_write(container: str, path: str) -> str:
    return docker("exec", container, "sh", "-c", f"touch {path}x 2>&1 || true")


def assert_guarded(stack: Stack) -> None:
    """Require the password on every page, and that nobody can write."""
    (container,) = stack.containers("dashboard")
    stack.wait(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy")
    address, _, port = docker("port", container, "8080").strip().rpartition(":")
    assert address == "127.0.0.1"
    for path in ("/", "/dashboard", "/api/studies", "/static/bundle.js"):
        assert ask(int(port), "GET", path, None)[0] == 401
        assert ask(int(port), "GET", path, "wrong")[0] == 401
    status, body = ask(int(port), "GET", "/api/studies", PASSWORD)
    assert (status, b"whole" in body) == (200, True)
    assert ask(int(port), "DELETE", "/api/studies/1", None)[0] == 401
    assert ask(int(port), "DELETE", "/api/studies/1", PASSWORD)[0] == 403
    assert ask(int(port), "POST", "/api/studies", PASSWORD)[0] == 403


def assert_submission(stack: Stack) -> None:
    """Require that export, train and predict leave a submission in the host's runs folder."""
    stack.tool("export")
    stack.tool("train")
    stack.tool("predict")
    assert (stack.runs / "best.toml").is_file()
    assert (stack.runs / "model" / "model.safetensors").is_file()
    lines = (stack.runs / "submission.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("video_name,y_pred", 9)
    assert (stack.runs / "submission.csv").stat().st_uid == 1000


def test_up_again_extends_the_budget_and_refuses_another_contract(stack: Stack) -> None:
    """The same study with more trials goes on; with another space it is refused, line by line."""
    stack.write_study("grows", trials=2, epochs=2)
    stack.up(2)
    stack.wait_for_end()
    assert_whole(stack.status(), 2)
    stack.write_study("grows", trials=4, epochs=2)
    stack.up(2)
    stack.wait_for_end()
    assert_left_with_0(stack)
    assert_whole(stack.status(), 4)
    stack.write_study("grows", trials=4, epochs=2, lr="2e-2")
    done = stack.run("up", "--detach", "--scale", "worker=2")
    assert done.returncode != 0
    assert {state["ExitCode"] for state in stack.states("study")} == {2}
    assert "space.lr" in read_log(stack.containers("study")[0])


def test_killed_containers_trial_goes_on(stack: Stack) -> None:
    """`docker kill` in mid-trial: the other worker goes on from the checkpoint, nothing is lost."""
    stack.write_study("killed", trials=3, epochs=100)
    stack.up(2)
    stack.wait_for_epoch(2, num_trials=2)
    killed = stack.containers("worker")[0]
    docker("kill", killed)
    stack.wait_for_end()
    assert inspect(killed)["State"]["ExitCode"] == 137
    assert_whole(stack.status(), 3)
    assert stack.events("trial_taken_over")
    assert stack.events("training_resumed")


def test_worker_that_dies_by_itself_is_started_again(stack: Stack) -> None:
    """A worker that is out of memory, say, comes back by the restart policy and ends its trial."""
    stack.write_study("restarted", trials=2, epochs=100)
    stack.up(1)
    stack.wait_for_epoch(2)
    (worker,) = stack.containers("worker")
    docker("exec", worker, "sh", "-c", "kill -9 -1 || true")
    stack.wait(lambda: inspect(worker)["RestartCount"] == 1)
    stack.wait_for_end()
    assert_left_with_0(stack)
    assert_whole(stack.status(), 2)
    assert stack.events("training_resumed")


def test_restarted_database_stops_no_training(stack: Stack) -> None:
    """`docker compose restart db` in mid-run: the same workers go on, every report arrives."""
    stack.write_study("outage", trials=3, epochs=100)
    stack.up(2)
    stack.wait_for_epoch(2, num_trials=2)
    stack.compose("restart", "db")
    stack.wait_for_end()
    assert_left_with_0(stack)
    assert {inspect(worker)["RestartCount"] for worker in stack.containers("worker")} == {0}
    assert_whole(stack.status(), 3)
    assert not stack.events("trial_taken_over")
    assert sorted(event["trial"] for event in stack.events("trial_started")) == [0, 1, 2]


def test_stopped_service_goes_on_where_it_was(stack: Stack) -> None:
    """`docker compose stop` ends within 10 s with the leases released; `up` goes on at once."""
    stack.write_study("stopped", trials=3, epochs=100)
    stack.up(2)
    stack.wait_for_epoch(2, num_trials=2)
    stack.compose("stop", "--timeout", "10", "worker")  # a later one would be killed: 137
    assert_left_with_0(stack)
    status = stack.status()
    assert (status["counts"]["running"], status["workers"]) == (2, [])
    assert len(stack.events("trial_released")) == 2
    stack.compose("stop", "--timeout", "10")
    stack.up(2)
    stack.wait_for_end()
    taken = stack.events("trial_taken_over")
    assert {event["attempts"] for event in taken} == {0}, "giving back is no death"
    assert len(taken) == 2
    assert_whole(stack.status(), 3)


def test_service_is_scaled_in_mid_run(stack: Stack) -> None:
    """From two workers to four to one: the budget stays exact, whoever leaves gives back."""
    stack.write_study("scaled", trials=8, epochs=100)
    stack.up(2)
    stack.wait_for_epoch(1)
    stack.up(4)
    stack.wait(lambda: len(stack.status()["workers"]) == 4)
    stack.up(1)
    assert len(stack.containers("worker")) == 1
    stack.wait_for_end()
    assert_left_with_0(stack)
    assert_whole(stack.status(), 8)
