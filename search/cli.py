"""The command line: parse, call, print. Heavy modules are imported inside the commands."""

import atexit
import gc
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from search.console import print_any_name
from search.errors import (
    ConfigError,
    ContractError,
    DashboardConfigError,
    GpuLostError,
    SearchError,
    StudyError,
)
from search.logs import configure_logging
from storage.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    StorageError,
    WrongTablesError,
)
from trainer.errors import DeviceError, RecipeError, TrainerError, TrainingStoppedError

if TYPE_CHECKING:
    from search.config import StudyConfig

app = typer.Typer(
    help="Hyperparameter search for deepfake-speech detectors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
_OF_THE_CONFIGURATION = (
    ConfigError, ContractError, DashboardConfigError, StudyError, DatabaseRefusedError,
    WrongTablesError, RecipeError, DeviceError,
)  # fmt: skip
_INTERRUPTED = 130
_ALLOW_MISMATCH = "--allow-version-mismatch"


def _name_of(study: str) -> str:
    """Return the study's name, where its file stands for it."""
    if not study.endswith(".toml"):
        return study
    from search.config import read_study_name

    return read_study_name(Path(study))


StudyFile = Annotated[Path, typer.Argument(metavar="study.toml", help="The study file.")]
StudyName = Annotated[
    str,
    typer.Argument(metavar="STUDY", callback=_name_of, help="The study's name, or its study.toml."),
]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="A folder in the FFDV layout.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", envvar="MELSEARCH_DATA", help="The data folder, in the FFDV layout."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="Of the dashboard, on loopback.")]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        _ALLOW_MISMATCH,
        envvar="MELSEARCH_ALLOW_VERSION_MISMATCH",
        help="Go on with a study of other code or libraries: its trials may then not compare, and "
        "one that is taken over goes on with other numerics, or starts over.",
    ),
]
Parent = Annotated[int, typer.Option(hidden=True)]


@app.command("sample-data")
def sample_data(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder to make.")],
    clips: Annotated[int, typer.Option(min=8, help="How many videos, both splits.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds render equal sets.")] = 0,
) -> None:
    """Render a small labelled set of talking videos, made not recorded, for a first try."""
    from search.progress import show_progress
    from trainer.sample_data import render_sample_data

    with show_progress("render") as progress:
        render_sample_data(out, num_clips=clips, seed=seed, progress=progress)
    typer.echo(f"{clips} synthetic videos in {out}")


@app.command()
def prepare(
    data: Data,
    sample_rate: Annotated[
        int | None,
        typer.Option(min=4000, max=192_000, help="Hz of the cached waveforms, else 16000."),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(help="A study file: its sample rate, and the weights it starts from."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all of the cache; mend it if it is damaged.")
    ] = False,
) -> None:
    """Decode every video's sound once, into the waveform cache; fetch a study's weights."""
    from search.home import find_home
    from search.prepare import prepare_data, prepare_for_study, show_prepare_report

    if study is None:
        report = prepare_data(sample_rate or 16_000, data, find_home(), verify=verify)
        show_prepare_report(report)
    elif sample_rate is None:
        prepare_for_study(study, data, find_home(), verify=verify)
    else:
        raise ConfigError("--study has the sample rate already: leave --sample-rate out")


@app.command()
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


@app.command()
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


@app.command()
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
        options = [_ALLOW_MISMATCH] if allow_mismatch else []
        database.stop = stop_on_signals()
        spent = search_here(study, home, workers, port, database.stop, options)
        show_outcome(study, home, spent)
    if not spent:
        raise typer.Exit(_INTERRUPTED)


@app.command()
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


@app.command()
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


@app.command()
def export(
    study: StudyName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "best.toml"
    ),
    trial: Annotated[int | None, typer.Option(help="This trial, not the best one.")] = None,
) -> None:
    """Write the winner as a file that trains it."""
    from search.export import export_best
    from search.home import connect, find_home
    from search.status import count_versions, mixed_words
    from search.study import open_study

    with connect(find_home()) as database:
        opened = open_study(database, study)
        recipe = export_best(opened, out, trial)
        versions = count_versions(opened.trials())
    typer.echo(f"trial {recipe.origin['trial']} ({recipe.origin['value']:.4f}) in {out}")
    if len(versions) > 1:
        typer.echo(f"versions: {mixed_words(versions)}")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="best.toml", help="What `export` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder.")] = Path("model"),
    data: DataOption = None,
    on: Annotated[
        Literal["train", "all"], typer.Option(help="The split, or both together.")
    ] = "train",
    device: Device = "auto",
) -> None:
    """Train the final model, calibrate it, and write its folder."""
    from trainer.recipe import read_recipe

    read = read_recipe(recipe)  # before the slow imports: a slip in the file is told at once
    from search.final import train_from_recipe
    from search.home import find_home
    from search.views import show_metrics

    show_metrics(train_from_recipe(read, out, data, on, device, find_home()), out)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="What `train` wrote.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Videos, or an FFDV folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The csv file.")] = Path(
        "submission.csv"
    ),
    tta: Annotated[
        int, typer.Option(min=1, max=1000, help="Passes of test-time augmentation.")
    ] = 1,
    device: Device = "auto",
) -> None:
    """Write calibrated fake probabilities, in the rows and the order of the submission."""
    from search.progress import show_progress
    from search.views import show_predict_report
    from trainer.device import choose_device
    from trainer.predict import predict as predict_files

    with show_progress("predict") as progress:
        report = predict_files(
            model, data, out, tta=tta, device=choose_device(device), progress=progress
        )
    show_predict_report(report, out)


def main() -> NoReturn:
    """Run the command line; a user's mistake is a message and an exit code, never a traceback."""
    configure_logging()
    print_any_name()
    atexit.register(gc.freeze)  # else the last collection walks all of torch, for seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except _OF_THE_CONFIGURATION as error:
        _fail(str(error), 2)
    except TrainingStoppedError as error:
        _fail(str(error), _INTERRUPTED)
    except GpuLostError as error:
        _fail(str(error), GpuLostError.EXIT_CODE)
    except (SearchError, StorageError, TrainerError) as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(_describe(error), 1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"melsearch: {message}", err=True)
    sys.exit(code)


def _describe(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _check_backbones_once(config: "StudyConfig", database: Any) -> None:
    """Look backbones up only for a study that is new: it costs the import of timm."""
    from search.config import check_backbones
    from search.study import study_exists

    if not study_exists(database, config.name):
        check_backbones(config)


if __name__ == "__main__":
    main()
