"""Let a storm come over our search and over plain Optuna, and say what is left.

Exit code 0: all that must be true of ours is; 1: it is not. `python -m benchmarks.chaos --help`.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event as Flag
from typing import Annotated

import typer

from benchmarks.chaos.arm import Arm, Storm, arm_in
from benchmarks.chaos.calm import compare
from benchmarks.chaos.evidence import gather
from benchmarks.chaos.keep import keep_evidence
from benchmarks.chaos.report import judge, write_report
from benchmarks.chaos.stage import make_cache
from benchmarks.chaos.timeline import timeline
from benchmarks.chaos.weather import Event, forecast
from trainer.cache import find_cache

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_ARMS = ("ours", "plain Optuna")
_SHOW_SECONDS = 10.0
_JOIN_SECONDS = 180.0
"""All workers have to train by then, in calm weather."""


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="How long the storm lasts.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the weather and of the studies.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="In each arm.")] = 8,
    trials: Annotated[int, typer.Option(min=1, help="Of each study.")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="At most so many studies an arm.")] = 1000,
    pause: Annotated[float, typer.Option(help="Seconds between two events, on average.")] = 6.0,
    patience: Annotated[float, typer.Option(help="Minutes to end in, after the storm.")] = 15.0,
    compared: Annotated[int, typer.Option(help="Most calm trainings for each arm.")] = 120,
    keep: Annotated[bool, typer.Option("--keep", help="Keep logs and audit if all holds, too.")] = (
        False
    ),
    out: Annotated[Path | None, typer.Option(help="The report, Markdown.")] = None,
) -> None:
    """Let a storm come over our search and over plain Optuna, and say what is left."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of all processes that are started from here
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    storm = Storm(seed, workers, trials, rounds, 60 * minutes, 60 * patience)
    events = list(forecast(seed, storm.seconds, workers, pause))
    with tempfile.TemporaryDirectory(prefix="melsearch-chaos-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # root's server runs as a user of its own, who has to get through
        fingerprint = make_cache(folder / "data", folder / "cache")
        with arms_in(folder, fingerprint, storm) as arms:
            join(arms)
            face(arms, events)
            found = [gather(arm) for arm in arms]
        cache = find_cache(folder / "cache", fingerprint)
        assert cache is not None
        show("the same trainings in calm weather")
        differences = compare(found, cache, seed, compared)
        verdicts = [judge(*pair) for pair in zip(found, differences, strict=True)]
        report = out or Path(f"build/chaos-{seed}.md")
        report.parent.mkdir(parents=True, exist_ok=True)
        report.with_suffix(".svg").write_text(timeline(found))
        if not verdicts[0].holds or keep:
            keep_evidence(found, report.with_suffix(""))
    print(write_report(report, storm, verdicts))
    raise typer.Exit(0 if verdicts[0].holds else 1)


@contextmanager
def arms_in(folder: Path, fingerprint: str, storm: Storm) -> Iterator[list[Arm]]:
    """Yield both arms, each in a folder of its own."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                arm_in(folder / f"arm-{number}", name, folder / "cache", fingerprint, storm)
            )
            for number, name in enumerate(_ARMS)
        ]


def join(arms: list[Arm]) -> None:
    """Begin in both arms, and wait until both have a first report."""
    for arm in arms:
        arm.begin_round()
    deadline = time.monotonic() + _JOIN_SECONDS
    while any(arm.count_reports() == 0 for arm in arms):
        if time.monotonic() > deadline:
            raise SystemExit(f"no reports within {_JOIN_SECONDS:g} s, and it is calm yet")
        time.sleep(0.2)


def face(arms: list[Arm], events: list[Event]) -> None:
    """Let the storm come over both arms at the same time, and say now and then how it goes."""
    stop, begun = Flag(), time.monotonic()
    with ThreadPoolExecutor(len(arms)) as threads:
        try:
            faced = [threads.submit(arm.face, events, stop) for arm in arms]
            while wait(faced, _SHOW_SECONDS, FIRST_EXCEPTION).not_done:
                if any(future.done() and future.exception() for future in faced):
                    break
                minutes = (time.monotonic() - begun) / 60
                show(f"{minutes:5.1f} min  " + "; ".join(arm.describe() for arm in arms))
        finally:
            stop.set()
    for future in faced:
        future.result()


def show(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
