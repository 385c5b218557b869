"""Build the waveform cache: once, on all cores, safe to kill and safe to start twice."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.dataset import MAX_SECONDS, SPLITS, Clip, Dataset, Reject, read_dataset
from trainer.decode import DecodeSettings, decode_all
from trainer.errors import DataError
from trainer.findings import compare_sounds, count_lacks, find_shared, require_apart
from trainer.index import CODECS, Index, check_sizes, read_index, short_digest
from trainer.partial import Entry, PartialCache

CONTENT_VERSION = 1
"""Rises whenever other samples or images are made of the same files."""
BALANCED_SHARE = 0.2
"""A split whose rarer class has a smaller share than this is worth a warning."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Progress = Callable[[int, int], None]
"""Told how many clips are done, and of how many."""


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds after the rejects."""

    num_clips: int
    hours: float
    num_real: int
    num_fake: int


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` found and made."""

    cache: Path
    data_fingerprint: str
    reused: bool
    """The cache was there already; nothing was decoded."""
    splits: dict[str, SplitSummary]
    rejects: tuple[Reject, ...]
    warnings: tuple[str, ...]


def prepare(
    root: Path,
    cache_root: Path,
    *,
    sample_rate: int = 16_000,
    notebook_images: bool = True,
    frame_size: int = 0,
    codecs: bool = False,
    anew: bool = False,
    allow_duplicates: bool = False,
    num_processes: int | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Decode every clip's sound into a waveform cache, or find that this is done already.

    Killed, it goes on where it was when called again; called twice at once, the second call waits
    for the first. By default it decodes on all cores. With `anew` it takes the place of the cache
    that is there, whose readers keep their open files. With a `frame_size`, in pixels, frames of
    the picture are kept as well, and a clip that has only a picture counts as a silent one. With
    `codecs` each clip's sound is kept as each of index.CODECS leaves it, too.

    The same sound in both splits is refused, unless that is allowed or there is a cache already.

    Raises:
        DataError: the data can't be used, or the cache can't be written.
    """
    dataset = read_dataset(root)
    settings = DecodeSettings(sample_rate, notebook_images, frame_size, CODECS if codecs else ())
    cache = cache_root / _fingerprint_inputs(dataset.clips, settings)
    index = None if anew else _find_index(cache)
    reused = index is not None
    if index is None:
        with _explain_failure(cache_root), _locked(cache):
            # Another prepare may have made it meanwhile.
            index = None if anew else _find_index(cache)
            reused = index is not None
            if index is None:
                num_processes = num_processes or len(os.sched_getaffinity(0))
                index = _build(
                    dataset, settings, cache, num_processes, progress,
                    allow_duplicates=allow_duplicates,
                )  # fmt: skip
    return _report(dataset, cache, index, reused=reused)


def _build(
    dataset: Dataset,
    settings: DecodeSettings,
    cache: Path,
    num_processes: int,
    progress: Progress | None,
    *,
    allow_duplicates: bool,
) -> Index:
    with PartialCache(
        cache.with_suffix(".partial"), len(dataset.clips), settings.clip_bytes
    ) as partial:
        todo = [clip.path for clip in dataset.clips[len(partial.entries) :]]
        with closing(decode_all(todo, settings, min(num_processes, len(todo) or 1))) as outcomes:
            for outcome in outcomes:
                partial.add(outcome)
                if progress is not None:
                    progress(len(partial.entries), len(dataset.clips))
        index = _make_index(dataset, settings, partial.entries)
        _require_clips(index)
        if not allow_duplicates:
            require_apart(index.shared_sounds)
        partial.finish(index, cache)
    return index


def _make_index(dataset: Dataset, settings: DecodeSettings, entries: Sequence[Entry]) -> Index:
    fates = list(zip(dataset.clips, entries, strict=True))
    kept = [(clip, entry) for clip, entry in fates if not entry.reason]
    checksums = {
        name: [part for _, entry in kept for part in entry.checksums[name]]
        for name in settings.clip_bytes(0)
    }
    return Index(
        root=os.fsencode(dataset.root.resolve()).decode("utf-8", "backslashreplace"),
        data_fingerprint=_fingerprint_data(kept, settings),
        sample_rate=settings.sample_rate,
        notebook_images=settings.notebook_images,
        frame_size=settings.frame_size,
        codecs=list(settings.codecs),
        splits=[clip.split for clip, _ in kept],
        names=[clip.name for clip, _ in kept],
        targets=[clip.target for clip, _ in kept],
        num_samples=[entry.num_samples for _, entry in kept],
        source_digests=[short_digest(entry.source_digest) for _, entry in kept],
        checksums=checksums,
        rejects=[(clip.split, clip.name, entry.reason) for clip, entry in fates if entry.reason],
        warnings=[*compare_sounds(kept), *count_lacks(kept)],
        shared_sounds=find_shared(kept),
    )


def _require_clips(index: Index) -> None:
    for split in SPLITS:
        if split not in index.splits:
            reasons = sorted({reason for where, _, reason in index.rejects if where == split})
            raise DataError(
                f"no clip in {split}set/ can be decoded: {', '.join(reasons)}; "
                "give it at least one file with sound"
            )


def _fingerprint_inputs(clips: Sequence[Clip], settings: DecodeSettings) -> str:
    """Return a digest of what `stat` and the labels say: equal means nothing was touched."""
    digest = hashlib.sha256(json.dumps([CONTENT_VERSION, MAX_SECONDS, asdict(settings)]).encode())
    for clip in clips:
        try:
            status = os.stat(clip.path)  # noqa: PTH116, twice as fast
        except OSError as error:
            raise DataError(
                f"{clip.path} went away meanwhile; run melsearch prepare when the data are at rest"
            ) from error
        facts = [clip.split, clip.name, clip.target, status.st_size, status.st_mtime_ns]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:32]


def _fingerprint_data(kept: Sequence[tuple[Clip, Entry]], settings: DecodeSettings) -> str:
    """Return a digest of labels, names and contents: equal on every host that has the same data.

    Of the files' bytes, not of the samples: decoders may differ in the last bit between processors.
    """
    facts: list[object] = [CONTENT_VERSION, MAX_SECONDS, settings.sample_rate]
    if settings.frame_size:
        facts.append(settings.frame_size)
    digest = hashlib.sha256(json.dumps(facts).encode())
    for clip, entry in kept:
        facts = [clip.split, clip.name, clip.target, entry.source_digest]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _find_index(cache: Path) -> Index | None:
    """Return the index of a whole cache, or None if it has to be made (anew)."""
    try:
        index = read_index(cache)
        check_sizes(cache, index)
    except DataError:
        return None
    return index


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Let one process at a time build this cache; the kernel frees the lock of a killed one."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _explain_failure(cache_root: Path) -> Iterator[None]:
    """Say what a failed write means for the cache."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            fix = "free some, or choose another cache folder; what is decoded is kept"
            raise DataError(f"no space left for the cache {cache_root}: {fix}") from error
        raise DataError(f"can't write the cache {cache_root}: {error.strerror}") from error


def _report(dataset: Dataset, cache: Path, index: Index, *, reused: bool) -> PrepareReport:
    splits: dict[str, SplitSummary] = {split: _summarize(index, split) for split in SPLITS}
    warnings = [*dataset.warnings, *index.warnings]
    for split, summary in splits.items():
        warnings += _judge_balance(split, summary)
    if index.shared_sounds:
        warnings.append(f"the same sound is in both splits, {len(index.shared_sounds)} times")
    num_cut = sum(count >= MAX_SECONDS * index.sample_rate for count in index.num_samples)
    if num_cut:
        warnings.append(f"{num_cut} clips are longer than {MAX_SECONDS // 60} min: cut to that")
    rejects = (*dataset.rejects, *(Reject(*reject) for reject in index.rejects))
    return PrepareReport(
        cache, index.data_fingerprint, reused, splits, tuple(rejects), tuple(warnings)
    )


def _summarize(index: Index, split: str) -> SplitSummary:
    rows = [row for row, where in enumerate(index.splits) if where == split]
    num_fake = sum(index.targets[row] for row in rows)
    hours = sum(index.num_samples[row] for row in rows) / index.sample_rate / 3600
    return SplitSummary(len(rows), hours, len(rows) - num_fake, num_fake)


def _judge_balance(split: str, summary: SplitSummary) -> list[str]:
    for name, count in (("real", summary.num_real), ("fake", summary.num_fake)):
        if count == 0:
            return [f"{split}set/ has no {name} clip: nothing can be learned or measured there"]
        if count < BALANCED_SHARE * summary.num_clips:
            return [f"{split}set/ has {count} {name} clips of {summary.num_clips}: imbalanced"]
    return []
