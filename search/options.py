"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ALLOW_MISMATCH = "--allow-version-mismatch"


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
        ALLOW_MISMATCH,
        envvar="MELSEARCH_ALLOW_VERSION_MISMATCH",
        help="Go on with a study of other code or libraries: its trials may then not compare, and "
        "one that is taken over goes on with other numerics, or starts over.",
    ),
]
Parent = Annotated[int, typer.Option(hidden=True)]
