"""From a study file and a data folder to a frozen study, or to what it would be (`--check`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from search.config import StudyConfig
from search.errors import ConfigError, ContractError
from search.home import Home
from search.prepare import open_prepared
from search.study import Study, create_study
from storage.database import Database
from trainer.cache import WaveformCache, list_caches, list_damaged
from trainer.dataset import SPLITS, Split, read_dataset
from trainer.errors import DataError
from trainer.splits import require_halves


def create_from_file(
    config: StudyConfig,
    data: Path | None,
    home: Home,
    database: Database,
    *,
    allow_mismatch: bool = False,
) -> Study:
    """Freeze the study with the data in `data`, or with the only ones that were prepared.

    Raises:
        ConfigError: an unknown backbone, or it is not clear which data.
        DataError: the data can't train a detector.
        ContractError: a study of that name has another contract.
    """
    cache = _cache_of(config, data, home)
    targets = {split: cache.split(split).targets.tolist() for split in SPLITS}
    require_both_classes(targets)
    require_halves(targets["val"], config.holdout)
    fingerprint = cache.data_fingerprint
    return create_study(database, config, fingerprint, allow_mismatch=allow_mismatch)


def require_both_classes(targets_of: Mapping[Split, Sequence[int]]) -> None:
    """Refuse data from which nothing can be learned or judged.

    Raises:
        DataError: a split lacks a class.
    """
    faults = [
        f"the {split} split has no {name} clip (of {len(targets)}); both classes are needed"
        for split, targets in targets_of.items()
        for target, name in ((0, "real"), (1, "fake"))
        if target not in targets
    ]
    if faults:
        raise DataError("\n".join(faults))


def read_targets(data: Path) -> dict[Split, list[int]]:
    """Return the targets of each split's labelled clips; decodes nothing.

    Raises:
        DataError: the folder or its labels can't be used.
    """
    clips = read_dataset(data).clips
    return {split: [clip.target for clip in clips if clip.split == split] for split in SPLITS}


def require_copies(config: StudyConfig, cache: WaveformCache, fix: str) -> None:
    """Refuse a cache without the copies of sounds that a trial may read.

    Raises:
        ContractError: says what is lacking, and the fix.
    """
    if config.needs_codecs and not cache.num_copies:
        raise ContractError(
            "the study reads what codecs make of each sound, and the prepared data hold no such"
            f" copies; {fix}"
        )


def _cache_of(config: StudyConfig, data: Path | None, home: Home) -> WaveformCache:
    if data is not None:
        return open_prepared(
            config.sample_rate, data, home, frame_size=config.frame_size, codecs=config.needs_codecs
        )
    caches = list_caches(home.cache)
    if len(caches) != 1:
        found = [f"  {root} ({fingerprint})" for _, root, fingerprint in caches]
        found += [f"  {damaged.fault}" for damaged in list_damaged(home.cache)]
        raise ConfigError(
            "which data? name them with --data DATA; prepared are:\n"
            + "\n".join(found or ["  none"])
        )
    cache = WaveformCache.open(caches[0][0])
    fix = "name the data with --data DATA to prepare them again"
    if cache.sample_rate != config.sample_rate:
        raise ContractError(
            f"the prepared data have {cache.sample_rate} Hz,"
            f" the study {config.sample_rate} Hz; {fix}"
        )
    # Frames that no trial reads are refused, too: --data, here or elsewhere, would prepare none,
    # and data with frames have another fingerprint.
    if cache.frame_size != config.frame_size:
        raise ContractError(
            f"the study reads {_frames(config.frame_size)}, the prepared data have"
            f" {_frames(cache.frame_size)}; {fix}"
        )
    require_copies(config, cache, fix)
    return cache


def _frames(size: int) -> str:
    return f"frames of {size} pixels" if size else "no frames"
