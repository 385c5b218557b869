"""The commands on data and detectors, which need no database: parse, call, print."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from search.errors import ConfigError
from search.options import Data, DataOption, Device


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
    video: Annotated[
        bool, typer.Option("--video", help="Keep frames of the picture, too, around the face.")
    ] = False,
    frame_size: Annotated[
        int | None, typer.Option(min=32, max=512, help="Pixels of a frame's sides, else 64.")
    ] = None,
    codecs: Annotated[
        bool, typer.Option("--codecs", help="Keep what AAC, MP3, Opus and G.722 make of it, too.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all of the cache; mend it if it is damaged.")
    ] = False,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Let both splits have the same sound.")
    ] = False,
) -> None:
    """Decode every video once, into the waveform cache; fetch a study's weights."""
    from search.home import find_home
    from search.prepare import prepare_data, prepare_for_study, show_prepare_report

    if frame_size is not None and not video:
        raise ConfigError("--frame-size is of no use without --video")
    if study is None:
        size = frame_size or 64 if video else 0
        report = prepare_data(
            sample_rate or 16_000,
            data,
            find_home(),
            frame_size=size,
            codecs=codecs,
            verify=verify,
            allow_duplicates=allow_duplicates,
        )
        show_prepare_report(report)
    elif sample_rate is None and not video and not codecs:
        home = find_home()
        prepare_for_study(study, data, home, verify=verify, allow_duplicates=allow_duplicates)
    else:
        raise ConfigError(
            "--study says what to keep already: leave --sample-rate out, and --video, --codecs"
        )


def backbones(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="timm models, else a choice.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, max=4096, help="Images at once.")] = 16,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a page in place of the table.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure what backbones cost here: parameters, speed, memory."""
    from search.backbones import show_backbones

    show_backbones(names or [], batch_size, out, device)


def audit(
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder for the page and the figures.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the classifiers.")] = 0,
    fail_above: Annotated[
        float | None, typer.Option(min=0.5, max=1, help="Exit with 1 if an AUC is above this.")
    ] = None,
) -> None:
    """Tell what gives the labels away without listening: length, level, silence, file size, ..."""
    from search.audit import audit_data

    audit_data(data, out, seed, fail_above)


def train(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="best.toml", help="What `export` wrote; or several.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder.")] = Path("model"),
    data: DataOption = None,
    on: Annotated[
        Literal["train", "all"], typer.Option(help="The split, or both together.")
    ] = "train",
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Train each recipe so often, and average.")
    ] = 1,
    device: Device = "auto",
) -> None:
    """Train the final model, or an ensemble of several; calibrate it, and write its folder."""
    from trainer.recipe import read_recipes

    # Before the slow imports: a slip in a file is told at once.
    read = [recipe for path in recipes for recipe in read_recipes(path)]
    from search.final import train_from_recipes
    from search.home import find_home
    from search.views import show_metrics

    show_metrics(train_from_recipes(read, seeds, out, data, on, device, find_home()), out)


def cross_validate(
    recipe: Annotated[Path, typer.Argument(metavar="best.toml", help="What `export` wrote.")],
    folds: Annotated[int, typer.Option(min=2, max=100, help="How many.")] = 5,
    group: Annotated[
        str | None,
        typer.Option(help="A column of manifest.csv, such as speaker; none is in two folds."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The figures as a file.")] = Path(
        "folds.json"
    ),
    data: DataOption = None,
    device: Device = "auto",
) -> None:
    """Train a recipe once for each fold of all clips, and measure it on the folds it never saw."""
    from trainer.recipe import read_recipe

    read = read_recipe(recipe)  # before the slow imports: a slip in the file is told at once
    from search.folds import cross_validate_recipe
    from search.home import find_home

    cross_validate_recipe(read, folds, group, out, data, device, find_home())


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="What `train` wrote.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A labelled FFDV folder.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder for the page, figures and scores.")
    ] = Path("evaluation"),
    split: Annotated[
        Literal["val", "train", "all"], typer.Option(help="The split, or both together.")
    ] = "val",
    tta: Annotated[
        int, typer.Option(min=1, max=1000, help="Passes of test-time augmentation.")
    ] = 1,
    device: Device = "auto",
) -> None:
    """Measure a detector on a labelled set: every metric with its interval, groups, mistakes."""
    from search.evaluate import evaluate_model

    evaluate_model(model, data, out, split, tta, device)


def onnx(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="What `train` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "model.onnx"
    ),
) -> None:
    """Write a model as one ONNX graph, after a check that it answers as the model does in fp32."""
    from trainer.folder import load_detector
    from trainer.onnx_export import export_onnx

    detector = load_detector(model)
    difference = export_onnx(detector, out)
    typer.echo(f"{out}: logits agree with the model's in fp32 to {difference:.1e}")
    precisions = {member.config.precision for member in detector.members}
    if precisions != {"fp32"}:
        where = "" if "bf16" in precisions else " on a GPU that has it"
        typer.echo(f"`predict` computes in bf16{where}, so its answers differ by more than that")


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
