"""Workers of a further host join over TLS; a trial moves from one host to the other."""

import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from tests.compose.stack import PASSWORD, Stack, docker, give_to

PORT = str(20_000 + os.getpid() % 10_000)
CLIENTS = (
    "select ssl from pg_stat_ssl join pg_stat_activity using (pid) "
    "where client_addr is not null and usename = 'melsearch'"
)


def bridge_address() -> str:
    """Return this machine's address in Docker's own network."""
    (network,) = json.loads(docker("network", "inspect", "bridge"))
    return str(ipaddress.ip_network(network["IPAM"]["Config"][0]["Subnet"])[1])


def make_certificate(folder: Path, address: str) -> None:
    """Write server.crt and server.key as docs/docker.md says, and ca.crt for the other hosts."""
    folder.mkdir()
    request = ["openssl", "req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=db", "-addext", f"subjectAltName=IP:{address}"]
    files = ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt")]
    subprocess.run([*request, *names, *files], check=True, capture_output=True)
    (folder / "ca.crt").write_bytes((folder / "server.crt").read_bytes())
    (folder / "server.key").chmod(0o600)
    give_to(folder / "server.key", "999")


@pytest.fixture
def hosts(
    image: str, speech_subset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stack, Stack]]:
    """The service on one host, its database published over TLS, and the workers of another."""
    folder, address = tmp_path_factory.mktemp("hosts"), bridge_address()
    make_certificate(folder / "tls", address)
    files = "docker-compose.yml:deploy/cpu.yml:deploy/hosts.yml"
    tls = {"DB_ADDRESS": address, "DB_PORT": PORT, "TLS_DIR": str(folder / "tls")}
    first = Stack(folder, speech_subset, files, tls)
    first.write_study("hosts", trials=2, epochs=80)
    further = Stack(
        tmp_path_factory.mktemp("further-host"),
        speech_subset,
        "docker-compose.worker.yml:deploy/worker-cpu.yml",
        {
            "RUNS_DIR": str(first.runs),
            "STUDY_FILE": first.environ["STUDY_FILE"],
            "TLS_DIR": str(folder / "tls"),
            "MELSEARCH_STORAGE": f"postgresql://melsearch@{address}:{PORT}/melsearch"
            "?sslmode=verify-full&sslrootcert=/tls/ca.crt",
        },
    )
    with first, further:
        yield first, further


def test_trial_moves_from_a_killed_host_to_another(hosts: tuple[Stack, Stack]) -> None:
    """Both hosts train; when one is cut off, the other ends its trial from the checkpoint."""
    first, further = hosts
    first.up(1)
    first.wait_for_epoch(1)
    further.up(1)
    further.wait_for_epoch(2)
    (database,) = first.containers("db")
    query = ["psql", "--username=melsearch", "--tuples-only", "--no-align", "--command", CLIENTS]
    assert set(docker("exec", database, *query).split()) == {"t"}
    with pytest.raises(psycopg2.OperationalError, match="no encryption"):
        psycopg2.connect(
            host=bridge_address(), port=PORT, user="melsearch", password=PASSWORD, sslmode="disable"
        )
    (worker,) = first.containers("worker")
    docker("kill", worker)
    further.wait_for_end()
    assert further.states("worker")[0]["ExitCode"] == 0
    assert further.events("trial_taken_over")
    assert further.events("training_resumed")
    assert first.status()["counts"]["complete"] == 2
