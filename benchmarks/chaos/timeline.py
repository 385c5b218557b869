"""The storm as a picture: a lane for each worker, and what came over it. Plain SVG."""

from collections.abc import Iterable, Iterator
from html import escape

from benchmarks.chaos.arm import Arm
from benchmarks.chaos.evidence import Evidence

_LEFT, _WIDTH, _LANE, _GAP = 130, 1070, 14, 4
"""Pixels."""
_ALIVE, _REPORTS, _FROZEN, _SIGNAL = "#d0d7de", "#1a7f37", "#8250df", "#cf222e"
_COLOURS = {
    "server": "#cf222e",
    "postmaster": "#cf222e",
    "backends": "#cf222e",
    "volume": "#9a6700",
}
_NETWORK = "#0969da"
_LEGEND = (
    (_ALIVE, "process"),
    (_REPORTS, "reports"),
    (_FROZEN, "SIGSTOP"),
    (_SIGNAL, "SIGKILL, SIGTERM; server"),
    (_NETWORK, "network"),
    (_COLOURS["volume"], "volume"),
)


def timeline(all_evidence: list[Evidence]) -> str:
    """Return the picture of the storm, one block of lanes for each arm."""
    begins = min(life.started for one in all_evidence for life in one.arm.exposed.crew.lives)
    lives = [life for one in all_evidence for life in one.arm.exposed.crew.lives]
    ends = max(life.ended or begins for life in lives)
    scale = _Scale(begins, max(ends - begins, 1.0))
    blocks: list[str] = []
    top = 10
    for evidence in all_evidence:
        blocks += _draw_arm(evidence, scale, top)
        top += (evidence.arm.storm.workers + 2) * (_LANE + _GAP) + 10
    blocks += [*_draw_axis(scale, top), *_draw_legend(top + 24)]
    size = f'width="{_LEFT + _WIDTH + 20}" height="{top + 50}"'
    style = 'font-family="sans-serif" font-size="11"'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    body = "\n".join([ground, *blocks])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{body}\n</svg>\n'


class _Scale:
    """From Unix time to pixels."""

    def __init__(self, begins: float, seconds: float) -> None:
        self._begins, self.seconds = begins, seconds

    def x(self, time: float) -> float:
        return _LEFT + _WIDTH * min(max((time - self._begins) / self.seconds, 0.0), 1.0)

    def bar(self, first: float, last: float, y: float, colour: str, title: str = "") -> str:
        """Return a lane's bar between two instants, wide enough to be seen."""
        x = self.x(first)
        width = max(self.x(last) - x, 2.0)
        hint = f"<title>{escape(title)}</title>" if title else ""
        place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_LANE}"'
        return f'<rect {place} fill="{colour}">{hint}</rect>'


def _draw_arm(evidence: Evidence, scale: _Scale, top: int) -> Iterator[str]:
    arm = evidence.arm
    lanes = [top + (index + 1) * (_LANE + _GAP) for index in range(arm.storm.workers + 1)]
    yield f'<text x="{_LEFT}" y="{top + 10}" font-weight="bold">{escape(arm.name)}</text>'
    for name, y in zip(["all", *map(str, range(arm.storm.workers))], lanes, strict=True):
        label = "everything" if name == "all" else f"worker {name}"
        yield f'<text x="{_LEFT - 8}" y="{y + 11}" text-anchor="end">{label}</text>'
    for life in arm.exposed.crew.lives:
        end = life.ended or life.started
        title = f"exit code {life.code}"
        yield scale.bar(life.started, end, lanes[life.worker + 1], _ALIVE, title)
    for worker in range(arm.storm.workers):
        for first, last in _stretches(_reports_of(evidence, worker), scale.seconds / _WIDTH):
            yield scale.bar(first, last, lanes[worker + 1], _REPORTS)
    yield from _draw_events(arm, scale, lanes)


def _draw_events(arm: Arm, scale: _Scale, lanes: list[int]) -> Iterator[str]:
    for happened in arm.happened:
        event = happened.event
        last = happened.at + event.lasts_seconds
        title = f"{event.kind}, {event.lasts_seconds:.1f} s"
        if not event.kind.endswith(("worker", "worker for a while")):
            colours = (colour for word, colour in _COLOURS.items() if word in event.kind)
            yield scale.bar(happened.at, last, lanes[0], next(colours, _NETWORK), title)
        else:
            colour = _FROZEN if event.lasts_seconds else _SIGNAL
            yield scale.bar(happened.at, last, lanes[event.worker + 1], colour, title)


def _reports_of(evidence: Evidence, worker: int) -> Iterator[float]:
    for change in evidence.of("trial_intermediate_values"):
        if change.writer == f"w{worker}":
            yield change.at


def _stretches(times: Iterable[float], longest_gap: float) -> Iterator[tuple[float, float]]:
    """Yield first and last of the times that are so close that one bar can show them."""
    first = last = None
    for time in times:
        if first is None or last is None or time - last > longest_gap:
            if first is not None and last is not None:
                yield first, last
            first = time
        last = time
    if first is not None and last is not None:
        yield first, last


def _draw_axis(scale: _Scale, y: int) -> Iterator[str]:
    minutes = scale.seconds / 60
    step = next((step for step in (0.25, 0.5, 1, 2, 5, 10) if minutes / step <= 15), 30)
    for mark in range(int(minutes / step) + 1):
        x = _LEFT + _WIDTH * mark * step / minutes
        yield f'<line x1="{x:.1f}" y1="10" x2="{x:.1f}" y2="{y}" stroke="#afb8c1" opacity="0.4"/>'
        yield f'<text x="{x:.1f}" y="{y + 10}" text-anchor="middle">{mark * step:g} min</text>'


def _draw_legend(y: int) -> Iterator[str]:
    for number, (colour, words) in enumerate(_LEGEND):
        x = _LEFT + 160 * number
        yield f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 18}" y="{y + 10}">{words}</text>'
