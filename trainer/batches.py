"""What one step of a training or an evaluation reads: indices, windows and their samples.

Everything random here is a pure function of (seed, epoch), never of what was drawn before.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.cache import ClipSet, WaveformCache
from trainer.config import TrainConfig
from trainer.errors import DataError
from trainer.images import StoredImages
from trainer.pictures import Pictures, read_pictures

# Shape suffixes: N clips, W windows, B batch, T samples.

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """The inputs of one step, int16 waveforms (B, T) or uint8 images (B, 256, 256).

    Of a training, each clip's train_windows windows one behind the other.
    """

    inputs: NDArray[np.generic]
    indices: IntArray
    """Of the clips, (B,)."""
    pictures: Pictures | None = None
    """If the detector sees."""
    own_samples: IntArray | None = None
    """Of each window the samples before its clip comes again (B,), if repetition is a cue."""


def count_steps(num_clips: int, batch_size: int) -> int:
    """Return the steps of an epoch: a last batch of a single clip is left out (BatchNorm)."""
    steps, rest = divmod(num_clips, batch_size)
    return steps + (rest > 1)


def training_batches(
    clips: ClipSet, config: TrainConfig, epoch: int, first_step: int = 0
) -> Iterator[Batch]:
    """Yield the epoch's batches from `first_step` on: clips shuffled, each at random crops."""
    rng = np.random.default_rng([config.seed, epoch])
    num_clips, num_windows = len(clips), config.train_windows
    if config.sampling == "natural":
        order_N = rng.permutation(num_clips)
        crops_NW = rng.random((num_clips, num_windows))[order_N]
    else:
        order_N = _draw_balanced(clips, rng)
        crops_NW = rng.random((num_clips, num_windows))
    copies_N = _draw_copies(clips, config, rng)
    for step in range(first_step, count_steps(num_clips, config.batch_size)):
        begin = step * config.batch_size
        part = slice(begin, begin + config.batch_size)
        indices = order_N[part]
        room_B1 = _room(clips, config)[indices][:, None]
        starts_BW = np.floor(crops_NW[part] * (room_B1 + 1)).astype(np.int64)
        repeated = (np.repeat(values, num_windows) for values in (indices, copies_N[part]))
        rows, copies = repeated
        yield read_batch(clips, config, rows, starts_BW.ravel(), copies)


def _draw_balanced(clips: ClipSet, rng: np.random.Generator) -> IntArray:
    """Return as many clips as there are, half of each class, each nearly as often as another."""
    classes = [np.flatnonzero(clips.targets == target) for target in (0, 1)]
    classes = [members for members in classes if len(members)]
    drawn = []
    for number, members in enumerate(classes):
        share = (len(clips) + number) // len(classes)
        rounds = [rng.permutation(members) for _ in range(math.ceil(share / len(members)))]
        drawn.append(np.concatenate(rounds)[:share])
    return rng.permutation(np.concatenate(drawn))


def _draw_copies(clips: ClipSet, config: TrainConfig, rng: np.random.Generator) -> IntArray:
    """Return which copy of each clip is read, 0 for the clip itself."""
    if config.codec_share == 0 or clips.num_copies == 0:
        return np.zeros(len(clips), np.int64)
    is_copy_N = rng.random(len(clips)) < config.codec_share
    return np.where(is_copy_N, rng.integers(1, clips.num_copies + 1, len(clips)), 0)


def evaluation_batches(
    clips: ClipSet, config: TrainConfig, batch_size: int, shift: float = 0.0
) -> Iterator[Batch]:
    """Yield the evaluation windows of all clips, in the clips' order; a clip may have several.

    `shift` in [0, 1) moves every window by that part of the distance between two of them, round the
    end; it turns a clip that is shorter than a window round by that part of its length.
    """
    indices_W, starts_W = evaluation_windows(clips, config, shift)
    for begin in range(0, len(indices_W), batch_size):
        part = slice(begin, begin + batch_size)
        yield read_batch(clips, config, indices_W[part], starts_W[part])


def evaluation_windows(
    clips: ClipSet, config: TrainConfig, shift: float = 0.0
) -> tuple[IntArray, IntArray]:
    """Return the clip index and the first sample of every evaluation window, both (W,).

    A clip has as many windows as cover it, at most eval_windows, evenly spread from its first
    sample to its last; a single window of a longer clip is its middle.
    """
    if config.frontend == "notebook" or config.modality == "video":
        whole_N = np.arange(len(clips), dtype=np.int64)
        return whole_N, np.zeros_like(whole_N)
    room_N = _room(clips, config)
    window = window_samples(config)
    indices: list[int] = []
    starts: list[int] = []
    for index, (room, length) in enumerate(zip(room_N.tolist(), clips.num_samples, strict=True)):
        num_windows = min(config.eval_windows, 1 + math.ceil(room / window))
        indices += [index] * num_windows
        starts += _spread(room, num_windows, shift) if room else [_turn(length, window, shift)]
    return np.array(indices, np.int64), np.array(starts, np.int64)


def read_batch(
    clips: ClipSet,
    config: TrainConfig,
    indices: IntArray,
    starts: IntArray,
    copies: IntArray | None = None,
) -> Batch:
    """Return the inputs of some of the clips, or of these copies, from these samples on.

    Raises:
        CacheDamagedError: what is read isn't as it was written.
    """
    inputs = read_inputs(clips, config, indices, starts, copies)
    own_samples = None
    if config.repetition:
        own_samples = np.minimum(clips.num_samples[indices], window_samples(config))
    return Batch(inputs, indices, read_pictures(clips, config, indices), own_samples)


def read_inputs(
    clips: ClipSet,
    config: TrainConfig,
    indices: IntArray,
    starts: IntArray,
    copies: IntArray | None = None,
) -> NDArray[np.generic]:
    """Return windows of waveforms (B, T) int16, or the notebook's images (B, 256, 256) uint8.

    Raises:
        CacheDamagedError: what is read isn't as it was written.
    """
    if config.frontend == "notebook":
        return _images(clips)[indices]
    window = window_samples(config)
    inputs_BT = np.empty((len(indices), window), np.int16)
    copies = np.zeros_like(indices) if copies is None else copies
    places = zip(indices.tolist(), starts.tolist(), copies.tolist(), strict=True)
    for row, (index, start, copy) in enumerate(places):
        if start + window <= clips.num_samples[index]:
            clips.read_window(index, start, inputs_BT[row], copy)
        else:
            inputs_BT[row] = np.resize(np.roll(clips.waveform(index, copy), -start), window)
    return inputs_BT


def window_samples(config: TrainConfig) -> int:
    """Return the samples in one window."""
    return round(config.window_seconds * config.sample_rate)


def check_sample_rate(cache: WaveformCache, config: TrainConfig) -> None:
    """Refuse a cache of another sample rate than the config's.

    Raises:
        DataError: names both.
    """
    if cache.sample_rate != config.sample_rate:
        raise DataError(
            f"sample_rate must be the waveform cache's, {cache.sample_rate} Hz, got"
            f" {config.sample_rate}; prepare the data at {config.sample_rate} Hz"
        )


def check_images(clips: ClipSet, config: TrainConfig) -> None:
    """Refuse clips that lack the images which the config's frontend reads.

    Raises:
        DataError: the clips were cached without notebook images.
    """
    if config.frontend == "notebook" and clips.images is None:
        raise DataError(
            'frontend "notebook" reads the notebook\'s images, and the waveform cache holds none;'
            ' prepare the data again with notebook images, or choose frontend "logmel"'
        )


def check_copies(clips: ClipSet, config: TrainConfig) -> None:
    """Refuse training clips that lack the copies which the config's codec_share needs.

    Raises:
        DataError: the clips were cached without copies.
    """
    if config.codec_share and config.frontend != "notebook" and not clips.num_copies:
        raise DataError(
            f"codec_share = {config.codec_share:g} reads what codecs made of each sound, and the"
            " cache holds no copies; prepare the data with --codecs, or set codec_share = 0"
        )


def _images(clips: ClipSet) -> NDArray[np.uint8] | StoredImages:
    if clips.images is None:
        raise RuntimeError("check_images was not called")
    return clips.images


def _room(clips: ClipSet, config: TrainConfig) -> IntArray:
    """Return how far each clip's window can move, in samples (N,); 0 for clips that get tiled."""
    return np.maximum(clips.num_samples - window_samples(config), 0)


def _turn(length: int, window: int, shift: float) -> int:
    return int(shift * length) if length < window else 0


def _spread(room: int, num_windows: int, shift: float) -> list[int]:
    if num_windows == 1:
        middle = room / 2
        return [int(middle + shift * room) % (room + 1)]
    gap = room / (num_windows - 1)
    return [int(number * gap + shift * gap) % (room + 1) for number in range(num_windows)]
