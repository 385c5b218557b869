"""The commands on a study, which need the database: parse, call, print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.errors import ConfigError
from search.options import (
    ALLOW_MISMATCH,
    AllowMismatch,
    DataOption,
    Parent,
    Port,
    StudyFile,
    StudyName,
)
from storage.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from search.config import StudyConfig

INTERRUPTED = 130


def create(
    study_file: StudyFile,
    data: DataOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only show what would be.")] = False,
    allow_mismatch: AllowMismatch = False,
) -> None:
    """Validate a study and freeze it in the database; enqueue its baseline."""
    from search.config import check_backbones, read_study
    from search.create import create_from_file
    from search.home import connect, find_home
    from search.views import show_check

    config = read_study(study_file)
    check_backbones(config)
    if check:
        show_check(config, data)
        return
    home = find_home()
    with connect(home, create=True) as database:
        study = create_from_file(config, data, home, database, allow_mismatch=allow_mismatch)
        typer.echo(f"study {study.name} is ready: {study.budget()} trials, {study.database}")


def worker(
    study: StudyName,
    device: Annotated[
        str,
        typer.Option(envvar="MELSEARCH_DEVICE", help="auto, cpu, cuda, cuda:N or a GPU's UUID."),
    ] = "auto",
    workers_per_gpu: Annotated[
        int,
        typer.Option(min=1, envvar="MELSEARCH_WORKERS_PER_GPU", help="How many share a GPU."),
    ] = 1,
    allow_mismatch: AllowMismatch = False,
    parent: Parent = 0,
) -> None:
    """Claim trials and train them, one at a time, until the budget is spent."""
    from search.home import connect, find_home
    from search.signals import leave_with_parent, stop_on_signals
    from search.study import open_study
    from search.vacancy import SlotWish
    from search.worker import run_worker

    stop = stop_on_signals()  # not before: a signal ends the slow imports at once
    leave_with_parent(parent)
    home = find_home()
    with connect(home) as database:
        database.wait_until(stop)
        try:
            opened = open_study(database, study)
            wish = SlotWish(device, workers_per_gpu)
            run_worker(opened, home, wish, stop, allow_mismatch=allow_mismatch)
        except DatabaseUnavailableError:  # nothing is held that would not end by itself
            if not stop.is_set():
                raise


def up(
    study_file: StudyFile,
    data: DataOption = None,
    workers: Annotated[int, typer.Option(min=1, help="How many worker processes.")] = 1,
    port: Port = 8080,
    allow_mismatch: AllowMismatch = False,
) -> None:
    """Search on this machine: database, cache, workers, dashboard, progress. Ctrl-C stops it."""
    from search.config import read_study
    from search.create import create_from_file
    from search.home import connect, find_home
    from search.local import search_here
    from search.signals import stop_on_signals
    from search.views import show_outcome

    config, home = read_study(study_file), find_home()
    with connect(home, create=True) as database:
        _check_backbones_once(config, database)
        study = create_from_file(config, data, home, database, allow_mismatch=allow_mismatch)
        options = [ALLOW_MISMATCH] if allow_mismatch else []
        database.stop = stop_on_signals()
        spent = search_here(study, home, workers, port, database.stop, options)
        show_outcome(study, home, spent)
    if not spent:
        raise typer.Exit(INTERRUPTED)


def status(
    study: StudyName,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show counts, the best so far against the baseline, the workers and the time left."""
    from search.home import connect, find_home
    from search.status import show_status, watch_status
    from search.study import open_study

    with connect(find_home()) as database:
        show = watch_status if watch else show_status
        show(open_study(database, study), as_json=as_json)


def dashboard(
    host: Annotated[
        str, typer.Option(help="The address; any but loopback demands a password.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port; 0 is any free one.")
    ] = 8080,
    writable: Annotated[
        bool, typer.Option("--writable", help="Allow changes: delete, rename, tell, upload.")
    ] = False,
    prefix: Annotated[
        str,
        typer.Option(envvar="MELSEARCH_DASHBOARD_PREFIX", help="The path under a reverse proxy."),
    ] = "",
    parent: Parent = 0,
) -> None:
    """Serve optuna-dashboard: on loopback and read-only, unless told otherwise."""
    from search.dashboard import NUM_THREADS, grant_access, serve_dashboard
    from search.home import connect, find_home
    from search.signals import leave_with_parent

    leave_with_parent(parent)
    access = grant_access(host, port, writable=writable, prefix=prefix)
    home = find_home()
    with connect(home, keep=NUM_THREADS) as database:
        serve_dashboard(database, home.artifacts.uploads, access)


def export(
    study: StudyName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "best.toml"
    ),
    trial: Annotated[int | None, typer.Option(help="This trial, not the best one.")] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="So many of the best together.")] = 1,
) -> None:
    """Write the winner as a file that trains it, or the best few as one that averages them."""
    from search.export import export_best
    from search.home import connect, find_home
    from search.status import count_versions, mixed_words
    from search.study import open_study

    if trial is not None and top > 1:
        raise ConfigError("--trial names one trial already: leave --top out")
    with connect(find_home()) as database:
        opened = open_study(database, study)
        recipes = export_best(opened, out, trial, top)
        versions = count_versions(opened.trials())
    for recipe in recipes:
        typer.echo(f"trial {recipe.origin['trial']} ({recipe.origin['value']:.4f}) in {out}")
    if len(versions) > 1:
        typer.echo(f"versions: {mixed_words(versions)}")


def _check_backbones_once(config: "StudyConfig", database: Any) -> None:
    """Look backbones up only for a study that is new: it costs the import of timm."""
    from search.config import check_backbones
    from search.study import study_exists

    if not study_exists(database, config.name):
        check_backbones(config)
