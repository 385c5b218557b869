"""The service as its users run it, by `docker compose` on the project's own files."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.command import TINY_STUDY
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PASSWORD = "p@ss:w/rd $x #y %25"  # whatever a person may think of
IMAGE = f"melsearch-test-{os.getpid()}"
OURS = ("MELSEARCH_", "COMPOSE_")


def docker(*arguments: str) -> str:
    """Run a docker command that must succeed; return its standard output."""
    return _checked(["docker", *arguments], dict(os.environ))


def inspect(container: str) -> dict[str, Any]:
    """Return all that Docker knows of a container."""
    (found,) = json.loads(docker("inspect", container))
    return dict(found)


def give_to(path: Path, owner: str) -> None:
    """Make a file or folder of the host somebody else's, as an administrator does."""
    own = ["--user", "0:0", "--entrypoint", "chown", "--volume", f"{path.parent}:/mnt"]
    docker("run", "--rm", *own, IMAGE, owner, f"/mnt/{path.name}")


def read_log(container: str) -> str:
    """Return all that a container has said."""
    done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


class Stack:
    """One service of its own: project, database, data, runs and study file."""

    def __init__(
        self, folder: Path, data: Path, files: str, changes: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.project = f"{folder.name}-{os.getpid()}"
        self.runs = folder / "runs"
        clean = {name: v for name, v in os.environ.items() if not name.startswith(OURS)}
        self.environ = clean | {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": files,
            "COMPOSE_PROGRESS": "plain",
            "MELSEARCH_IMAGE": IMAGE,
            "DATA_DIR": str(data),
            "RUNS_DIR": str(self.runs),
            "DASHBOARD_PORT": "0",
            **(changes or {}),
        }
        self._env_file = folder / ".env"
        example = (ROOT / ".env.example").read_text()
        filled = example.replace("MELSEARCH_PASSWORD=", f"MELSEARCH_PASSWORD='{PASSWORD}'")
        self._env_file.write_text(filled)

    def write_study(self, name: str, trials: int, epochs: int = 10, lr: str = "1e-2") -> None:
        """Write the study file of the next `up`: trials of a few seconds each."""
        text = TINY_STUDY.replace('"tiny"', f'"{name}"').replace("trials = 3", f"trials = {trials}")
        text = text.replace("epochs = 2", f"epochs = {epochs}").replace(
            "high = 1e-2", f"high = {lr}"
        )
        path = self.folder / f"{name}.toml"
        path.write_text(text)
        self.environ["STUDY_FILE"] = str(path)

    def run(
        self, *arguments: str, environ: Mapping[str, str] | None = None, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a compose command to its end, whatever it is; `text` is its standard input."""
        return subprocess.run(
            ["docker", "compose", "--env-file", str(self._env_file), *arguments],
            cwd=ROOT,
            env=self.environ | dict(environ or {}),
            input=text,
            capture_output=True,
            text=True,
            timeout=540,
        )

    def compose(
        self, *arguments: str, environ: Mapping[str, str] | None = None, text: str = ""
    ) -> str:
        """Run a compose command that must succeed; return its standard output."""
        done = self.run(*arguments, environ=environ, text=text)
        assert done.returncode == 0, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self, workers: int, *arguments: str) -> None:
        """Start the service, or what it lacks, with so many workers."""
        self.compose("up", "--detach", "--scale", f"worker={workers}", *arguments)

    def tool(self, *arguments: str) -> str:
        """Run a service of the profile `tools` to its end; return its standard output."""
        return self.compose("run", "--rm", "--no-TTY", *arguments)

    def status(self) -> dict[str, Any]:
        """Return how the study stands."""
        return dict(json.loads(self.tool("status", "status", "/study.toml", "--json")))

    def containers(self, *services: str) -> list[str]:
        """Return the ids of the services' containers (of all services, if none is named)."""
        return self.compose("ps", "--all", "--quiet", *services).split()

    def states(self, service: str) -> list[dict[str, Any]]:
        """Return what state each of the service's containers is in."""
        return [inspect(container)["State"] for container in self.containers(service)]

    def events(self, name: str, service: str = "worker") -> list[dict[str, Any]]:
        """Return the log events of that name, of all containers of the service."""
        lines = [line for c in self.containers(service) for line in read_log(c).split("\n")]
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in found if event["event"] == name]

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true; if it never is, show the end of all logs."""
        try:
            wait_until(condition, 400.0, poll_seconds=0.5)
        except AssertionError as error:
            logs = self.compose("logs", "--no-color", "--tail=30")
            raise AssertionError(f"{error}\n{self.compose('ps', '--all')}\n{logs}") from error

    def wait_for_epoch(self, epoch: int, num_trials: int = 1) -> None:
        """Wait until so many trials of the study at hand have come so far."""
        self.wait(lambda: len(self._trials_at(epoch)) >= num_trials)

    def _trials_at(self, epoch: int) -> set[int]:
        return {event["trial"] for event in self.events("epoch_ended") if event["epoch"] >= epoch}

    def wait_for_end(self) -> None:
        """Wait until every worker has left."""
        self.wait(lambda: all(state["Status"] == "exited" for state in self.states("worker")))

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove all that the service has left in Docker."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout=5")


def _checked(command: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
