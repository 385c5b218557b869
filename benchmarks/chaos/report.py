"""The storm's report: Markdown for people, JSON beside it."""

import json
import os
import platform
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.chaos.arm import Storm
from benchmarks.chaos.evidence import Evidence
from benchmarks.chaos.figures import figures
from benchmarks.chaos.invariants import EQUAL_TO_CALM, EXPLAINED, check
from benchmarks.chaos.weather import KINDS

_MOST_BREACHES = 8


@dataclass(frozen=True)
class Verdict:
    """What is said of one arm."""

    name: str
    figures: dict[str, float | int | str]
    breaches: dict[str, list[str]]
    """By invariant; an invariant that the arm can't be held to is not in it."""
    events: dict[str, int]
    missed: list[str]
    """What the weather could not do here."""

    @property
    def holds(self) -> bool:
        """Whether no invariant is broken."""
        return not any(self.breaches.values())


def judge(evidence: Evidence, differences: list[str]) -> Verdict:
    """Return the verdict on an arm, with what the calm trainings have shown."""
    arm = evidence.arm
    missed = [] if arm.exposed.volume.is_own else ["fill the volume: this user may not mount one"]
    return Verdict(
        arm.name,
        figures(evidence),
        check(evidence) | {EQUAL_TO_CALM: differences},
        dict(Counter(happened.event.kind for happened in arm.happened)),
        missed,
    )


def to_markdown(storm: Storm, verdicts: list[Verdict]) -> str:
    """Return the report."""
    header = f"| | {' | '.join(verdict.name for verdict in verdicts)} |"
    rule = "|---|" + "---|" * len(verdicts)
    blocks = [
        f"# The storm of seed {storm.seed}",
        f"{storm.workers} workers an arm, studies of {storm.trials} trials, "
        f"{storm.seconds / 60:.1f} minutes, both arms at the same time on {os.cpu_count()} cores "
        f"({platform.machine()}).",
        "\n".join([header, rule, *_figure_rows(verdicts)]),
        "## What must be true",
        "\n".join([header, rule, *_invariant_rows(verdicts)]),
        "## The weather",
        "\n".join([header, rule, *_event_rows(verdicts)]),
    ]
    blocks += [_list_breaches(verdict) for verdict in verdicts if not verdict.holds]
    blocks += [f"Not done to {v.name}: {', '.join(v.missed)}." for v in verdicts if v.missed]
    return "\n\n".join(blocks) + "\n"


def write_report(path: Path, storm: Storm, verdicts: list[Verdict]) -> str:
    """Write the report and its JSON; return the former."""
    text = to_markdown(storm, verdicts)
    path.write_text(text)
    content = {"storm": asdict(storm), "cores": os.cpu_count(), "arms": [*map(asdict, verdicts)]}
    path.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    return text


def _figure_rows(verdicts: list[Verdict]) -> list[str]:
    return [
        _row(name, [verdict.figures[name] for verdict in verdicts]) for name in verdicts[0].figures
    ]


def _invariant_rows(verdicts: list[Verdict]) -> list[str]:
    return [
        _row(words, [_holds(verdict.breaches.get(name)) for verdict in verdicts])
        for name, words in EXPLAINED.items()
    ]


def _event_rows(verdicts: list[Verdict]) -> list[str]:
    return [_row(kind, [verdict.events.get(kind, 0) for verdict in verdicts]) for kind in KINDS]


def _holds(breaches: list[str] | None) -> str:
    if breaches is None:
        return "does not apply"
    return f"**broken** ({len(breaches)})" if breaches else "holds"


def _row(name: str, cells: list[object]) -> str:
    return f"| {name} | {' | '.join(map(str, cells))} |"


def _list_breaches(verdict: Verdict) -> str:
    lines = [f"## Broken: {verdict.name}", ""]
    for name, breaches in verdict.breaches.items():
        lines += [f"- {name}: {breach}" for breach in breaches[:_MOST_BREACHES]]
        if len(breaches) > _MOST_BREACHES:
            lines.append(f"- {name}: and {len(breaches) - _MOST_BREACHES} more")
    return "\n".join(lines)
