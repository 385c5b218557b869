"""The storm's report."""

import json
from pathlib import Path

from benchmarks.chaos.arm import Storm
from benchmarks.chaos.report import Verdict, write_report


def verdict(name: str, breaches: dict[str, list[str]]) -> Verdict:
    """An arm that a storm of one event has come over."""
    return Verdict(name, {"complete": 7}, breaches, {"SIGKILL a worker": 1}, [])


def test_report_says_which_arm_broke_what(tmp_path: Path) -> None:
    """Both arms stand side by side, an invariant that one can't be held to included."""
    whole = verdict("ours", {"budget_is_exact": [], "tokens_rise_by_one": []})
    broken = verdict("plain", {"budget_is_exact": ["9 ended, asked were 8"]})
    assert whole.holds
    assert not broken.holds
    path = tmp_path / "report.md"
    text = write_report(path, Storm(3, 8, 60, 1, 90.0, 60.0), [whole, broken])
    assert path.read_text() == text
    assert "| complete | 7 | 7 |" in text
    assert "as were asked for. | holds | **broken** (1) |" in text
    assert "has the next one. | holds | does not apply |" in text
    assert "- budget_is_exact: 9 ended, asked were 8" in text
    assert json.loads(path.with_suffix(".json").read_text())["storm"]["seed"] == 3
