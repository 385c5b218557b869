"""Which clips a model knows, so that an evaluation can tell where its figures flatter."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from trainer.cache import ClipSet, WaveformCache
from trainer.errors import ModelError

CLIPS_FILE = "clips.json"
"""In the model folder; a model that was trained before there was one lacks it."""
_WORDS = {"trained": "trained it", "chose": "chose it", "calibrated": "fitted its temperature"}


class KnownClips(BaseModel, frozen=True, extra="forbid", strict=True):
    """Digests of files, as `trainer.index.short_digest` makes them: of bytes, whatever the name."""

    trained: list[str]
    chose: list[str]
    """The epoch, and in a search on the same data the trial."""
    calibrated: list[str]
    """By them the temperature was fitted."""

    def count(self, digests: Sequence[str]) -> dict[str, int]:
        """Return how many of these clips the model knows, and how many of them did what."""
        did = {name: set(listed) for name, listed in self}
        did = {"known": set().union(*did.values()), **did}
        return {name: sum(digest in of_it for digest in digests) for name, of_it in did.items()}


def find_known(
    cache: WaveformCache, choose: ClipSet, report: ClipSet, *, is_all: bool
) -> KnownClips | None:
    """Return which clips did what in a training on the training split, or on all clips.

    None if an earlier version made the cache, which then holds no digests.
    """
    if not all(clip.source_digest for clip in cache.clips):
        return None
    trained = {clip.source_digest for clip in cache.clips if is_all or clip.split == "train"}
    val = {clip.name: clip.source_digest for clip in cache.clips if clip.split == "val"}
    chose, calibrated = ({val[name] for name in clips.names} for clips in (choose, report))
    return KnownClips(trained=sorted(trained), chose=sorted(chose), calibrated=sorted(calibrated))


def read_known(model_dir: Path) -> KnownClips | None:
    """Read which clips the model of a folder knows; None if the folder doesn't say.

    Raises:
        ModelError: the file is damaged.
    """
    path = model_dir / CLIPS_FILE
    try:
        return KnownClips.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ModelError(
            f"the model's {path} is damaged; copy the folder again as a whole, or remove the file"
            f" and do without the count of clips that the model knows: {error}"
        ) from error


def describe_known(counts: Mapping[str, int] | None, num_clips: int) -> str:
    """Return a sentence about the clips of an evaluation that the model knows, empty if none."""
    if not counts or not counts["known"]:
        return ""
    told = ", ".join(f"{counts[name]:,} {words}" for name, words in _WORDS.items() if counts[name])
    return (
        f"the model knows {counts['known']:,} of {num_clips:,} clips: {told}; the figures flatter"
    )
