"""What is odd about the clips of a data folder: the same sound twice, streams that are missing."""

from collections import defaultdict
from collections.abc import Sequence

from trainer.dataset import Clip
from trainer.errors import DataError
from trainer.partial import Entry

MOST_NAMED = 3
"""Of the pairs of clips in a message."""

Kept = Sequence[tuple[Clip, Entry]]
"""The clips that could be decoded, and what became of them."""


def _by_sound(kept: Kept) -> list[list[Clip]]:
    """Return the clips of each sound that several have, without silence."""
    groups: defaultdict[str, list[Clip]] = defaultdict(list)
    for clip, entry in kept:
        if entry.lacks != "sound":
            groups[entry.sound_digest].append(clip)
    return [clips for clips in groups.values() if len(clips) > 1]


def find_shared(kept: Kept) -> list[tuple[str, str]]:
    """Return a training and a validation clip of each sound that is in both splits."""
    pairs = []
    for clips in _by_sound(kept):
        first = {clip.split: clip.name for clip in reversed(clips)}
        if len(first) > 1:
            pairs.append((first["train"], first["val"]))
    return pairs


def compare_sounds(kept: Kept) -> list[str]:
    """Return a warning of equal sounds under both labels."""
    torn = [clips for clips in _by_sound(kept) if len({clip.target for clip in clips}) > 1]
    if not torn:
        return []
    first, last = torn[0][0], torn[0][-1]
    return [
        f"the same sound is under both labels, {len(torn)} times; for one, "
        f"{first.split} {first.name!r} and {last.split} {last.name!r}"
    ]


def require_apart(shared_sounds: Sequence[tuple[str, str]]) -> None:
    """Refuse splits that share sounds.

    Raises:
        DataError: names a few of them.
    """
    if not shared_sounds:
        return
    pairs = [f"train {first!r} and val {second!r}" for first, second in shared_sounds]
    more = ["..."] if len(pairs) > MOST_NAMED else []
    raise DataError(
        f"the same sound is in both splits, {len(pairs)} times: "
        f"{', '.join([*pairs[:MOST_NAMED], *more])}. A detector is not measured by a clip that it "
        "was trained on: remove one of each, or allow it with "
        "`melsearch prepare DATA --allow-duplicates`; what is decoded is kept"
    )


def count_lacks(kept: Kept) -> list[str]:
    """Return a warning for each stream that clips lack."""
    warnings = []
    for stream in ("sound", "picture"):
        names = [clip.name for clip, entry in kept if entry.lacks == stream]
        if names:
            warnings.append(f"{len(names)} clips have no {stream}; for one, {names[0]!r}")
    return warnings
