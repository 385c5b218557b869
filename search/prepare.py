"""`prepare`: the waveform cache of a data folder, what was found on the way, a study's weights."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from search.console import make_console, print_plain
from search.home import Home
from search.progress import show_progress
from trainer.cache import WaveformCache, find_damage
from trainer.prepare import PrepareReport, prepare

MAX_NAMED = 3
"""Of the clips in one line; dots stand for the others."""


def prepare_data(
    sample_rate: int,
    data: Path,
    home: Home,
    *,
    frame_size: int = 0,
    codecs: bool = False,
    verify: bool = False,
    allow_duplicates: bool = False,
) -> PrepareReport:
    """Build the waveform cache of a data folder, or find it built; `verify` reads all of it.

    With a `frame_size`, in pixels, it keeps frames of the picture as well, with `codecs` what those
    make of each sound.

    Raises:
        DataError: the folder or its labels can't be used.
    """
    build = partial(
        prepare, data, home.cache, sample_rate=sample_rate, frame_size=frame_size,
        codecs=codecs,
        allow_duplicates=allow_duplicates,
    )  # fmt: skip
    with show_progress("decode") as progress:
        report = build(progress=progress)
    if not (verify and _is_damaged(report.cache)):
        return report
    with show_progress("decode") as progress:
        return build(anew=True, progress=progress)


def open_prepared(
    sample_rate: int, data: Path, home: Home, *, frame_size: int, codecs: bool
) -> WaveformCache:
    """Prepare likewise, tell on the standard error what was rejected or is odd, and open it.

    Raises:
        DataError: the folder or its labels can't be used.
    """
    report = prepare_data(sample_rate, data, home, frame_size=frame_size, codecs=codecs)
    _show_oddities(report, make_console(stderr=True))
    return WaveformCache.open(report.cache)


def _is_damaged(cache: Path) -> bool:
    """Check all of a cache and tell the user how it is."""
    with show_progress("verify") as progress:
        clips = [fault.clip for fault in find_damage(cache, progress)]
    if clips:
        told = f"damaged {len(clips)}: not as written ({_some(clips)}); the cache is built anew"
        print_plain(make_console(), told)
    else:
        print_plain(make_console(), "cache verified: every clip is as it was written")
    return bool(clips)


def prepare_for_study(
    study_file: Path,
    data: Path,
    home: Home,
    *,
    verify: bool = False,
    allow_duplicates: bool = False,
) -> None:
    """Build or find all that the study's workers read: the waveform cache and ImageNet weights.

    With `verify` all of the cache is read and checked. Without network, the weights must be here
    already.

    Raises:
        ConfigError: the study file is faulty, or names an unknown backbone.
        DataError: the folder or its labels can't be used.
        ModelError: some weights can't be had; all others are here then.
    """
    from search.config import check_backbones, read_study
    from search.space import imagenet_backbones

    config = read_study(study_file)
    backbones = imagenet_backbones(config)
    if backbones:  # else torch is not needed, and slow to import
        check_backbones(config, study_file.name)
    report = prepare_data(
        config.sample_rate,
        data,
        home,
        frame_size=config.frame_size,
        codecs=config.needs_codecs,
        verify=verify,
        allow_duplicates=allow_duplicates,
    )
    show_prepare_report(report)
    if backbones:
        _fetch_weights(backbones)


def _fetch_weights(backbones: Sequence[str]) -> None:
    from trainer.pretrained import fetch_weights

    with show_progress("weights") as progress:
        fetch_weights(backbones, progress)
    noun = "backbone" if len(backbones) == 1 else "backbones"
    print_plain(make_console(), f"weights: {len(backbones)} {noun} ready")


def show_prepare_report(report: PrepareReport) -> None:
    """Print clips, hours and classes of each split, the rejects by reason, and the warnings."""
    table = Table("split", "clips", "hours", "real", "fake", box=None, header_style="dim")
    for split, summary in report.splits.items():
        table.add_row(
            split,
            str(summary.num_clips),
            f"{summary.hours:.2f}",
            str(summary.num_real),
            str(summary.num_fake),
        )
    console = make_console()
    console.print(table)
    _show_oddities(report, console)
    built = "unchanged" if report.reused else "built"
    print_plain(console, f"cache {built}: {report.cache}, data {report.data_fingerprint}")


def _show_oddities(report: PrepareReport, console: Console) -> None:
    for reason, number in Counter(reject.reason for reject in report.rejects).most_common():
        names = [reject.name for reject in report.rejects if reject.reason == reason]
        print_plain(console, f"rejected {number}: {reason} ({_some(names)})")
    for warning in report.warnings:
        print_plain(console, f"warning: {warning}")


def _some(names: Sequence[str]) -> str:
    more = ["..."] if len(names) > MAX_NAMED else []
    return ", ".join([*names[:MAX_NAMED], *more])
