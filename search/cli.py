"""The command line: which commands there are, and how each one's failure is told."""

import atexit
import gc
import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from search import detector_commands, study_commands
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
from search.study_commands import INTERRUPTED
from storage.errors import DatabaseRefusedError, StorageError, WrongTablesError
from trainer.errors import DeviceError, RecipeError, TrainerError, TrainingStoppedError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for _command in (
    detector_commands.sample_data,
    detector_commands.prepare,
    detector_commands.audit,
    detector_commands.backbones,
    study_commands.create,
    study_commands.worker,
    study_commands.up,
    study_commands.status,
    study_commands.dashboard,
    study_commands.export,
    detector_commands.train,
    detector_commands.cross_validate,
    detector_commands.evaluate,
    detector_commands.onnx,
    detector_commands.predict,
):
    app.command()(_command)

_OF_THE_CONFIGURATION = (
    ConfigError, ContractError, DashboardConfigError, StudyError, DatabaseRefusedError,
    WrongTablesError, RecipeError, DeviceError,
)  # fmt: skip


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"melsearch {version('melsearch')}")
        raise typer.Exit


@app.callback()
def _melsearch(
    _: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Hyperparameter search for deepfake-speech detectors."""


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
        _fail(str(error), INTERRUPTED)
    except GpuLostError as error:
        _fail(str(error), GpuLostError.EXIT_CODE)
    except (SearchError, StorageError, TrainerError) as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(_describe(error), 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"melsearch: {message}", err=True)
    sys.exit(code)


def _describe(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


if __name__ == "__main__":
    main()
