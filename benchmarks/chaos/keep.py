"""Keeps what it takes to find out why an invariant broke."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from benchmarks.chaos.evidence import Evidence


def keep_evidence(all_evidence: list[Evidence], folder: Path) -> None:
    """Put the workers' and the server's logs, the audit and what happened into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    for evidence in all_evidence:
        arm = evidence.arm
        own = folder / arm.name
        shutil.copytree(arm.folder / "logs", own / "logs")
        shutil.copy(arm.exposed.server.folder / "server.log", own)
        _write_lines(own / "audit.jsonl", map(asdict, evidence.changes))
        _write_lines(own / "events.jsonl", map(asdict, arm.happened))
        _write_lines(own / "lives.jsonl", map(asdict, arm.exposed.crew.lives))


def _write_lines(path: Path, rows: "map[dict[str, object]]") -> None:
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
