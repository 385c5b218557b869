"""Decode many clips on all cores, and outlive the file that kills its decoder."""

import hashlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from trainer.errors import DataError
from trainer.index import COPY_FILE, FRAME_FILE, IMAGE_FILE, WAVEFORM_FILE, clip_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainer.audio import FloatArray

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

CRASHED = "crashed the decoder"
CLIPS_AHEAD = 4
"""Clips handed to each process beforehand; bounds the memory of those that wait their turn."""


@dataclass(frozen=True)
class DecodeSettings:
    """What is kept of a clip."""

    sample_rate: int
    """Hz."""
    notebook_images: bool
    frame_size: int = 0
    """Height and width in pixels of the frames; 0 keeps none."""

    codecs: tuple[str, ...] = ()
    """Which of index.CODECS make a copy of the sound."""

    def clip_bytes(self, num_samples: int) -> dict[str, int]:
        """Return how many bytes of a clip lie in each data file of the cache."""
        return clip_bytes(num_samples, self.notebook_images, self.frame_size, len(self.codecs))


@dataclass(frozen=True)
class DecodedClip:
    """One clip as it goes into the cache."""

    samples: bytes
    """int16, little endian, mono."""
    image: bytes
    """(256, 256) uint8, or nothing."""
    source_digest: str
    """SHA-256 of the file."""
    sound_digest: str
    """SHA-256 of the samples."""
    frames: bytes = b""
    """(P, D, S, S, C) uint8, black without a picture, or nothing."""

    copies: bytes = b""
    """int16, what each codec made of the sound, one behind the other."""

    @property
    def lacks(self) -> str:
        """Which stream of it is missing: `sound`, `picture` or none of them."""
        if not self.samples.strip(b"\0"):
            return "sound"
        return "picture" if self.frames and not self.frames.strip(b"\0") else ""

    @property
    def parts(self) -> dict[str, bytes]:
        """What may lie in the cache's data files, by file."""
        return {
            WAVEFORM_FILE: self.samples,
            IMAGE_FILE: self.image,
            FRAME_FILE: self.frames,
            COPY_FILE: self.copies,
        }


Outcome = DecodedClip | str
"""The clip, or the reason why there is none."""


def decode_clip(path: Path, settings: DecodeSettings) -> Outcome:
    """Return a file's sound in 16 bits, and what else is wanted of it, or why that can't be.

    Where frames are wanted, a file whose sound is missing is kept for its picture: it is silent.
    """
    from trainer.audio import UndecodableError
    from trainer.notebook_image import SAMPLE_RATE, notebook_image

    rates = [settings.sample_rate] + [SAMPLE_RATE] * settings.notebook_images
    try:
        with path.open("rb") as file:
            source_digest = hashlib.file_digest(file, "sha256").hexdigest()
        samples_T, *others = _decode_sound(path, rates, or_silence=settings.frame_size > 0)
    except UndecodableError as error:
        return str(error)
    except OSError:
        return "unreadable"
    rounded_T = (samples_T * 32768).round().clip(-32768, 32767).astype("<i2")
    samples = rounded_T.tobytes()
    image = notebook_image(others[0]).tobytes() if others else b""
    sound_digest = hashlib.sha256(samples).hexdigest()
    frames = _decode_frames(path, settings, len(samples_T)) if settings.frame_size else b""
    copies = _make_copies(rounded_T, settings, sound_digest) if settings.codecs else b""
    return DecodedClip(samples, image, source_digest, sound_digest, frames, copies)


# What only some data need is imported where it is needed: each decoder process would wait for it.


def _decode_sound(path: Path, rates: Sequence[int], *, or_silence: bool) -> "list[FloatArray]":
    if or_silence:
        from trainer.video import decode_mono_or_silence

        return decode_mono_or_silence(path, rates)
    from trainer.audio import decode_mono

    return decode_mono(path, rates)


def _decode_frames(path: Path, settings: DecodeSettings, num_samples: int) -> bytes:
    from trainer.video import decode_frames

    seconds = num_samples / settings.sample_rate
    return decode_frames(path, settings.frame_size, seconds).tobytes()


def _make_copies(
    samples_T: "NDArray[np.int16]", settings: DecodeSettings, sound_digest: str
) -> bytes:
    from trainer.codecs import encode_and_decode

    return b"".join(
        encode_and_decode(samples_T, settings.sample_rate, codec, sound_digest).tobytes()
        for codec in settings.codecs
    )


def decode_all(
    paths: Sequence[Path], settings: DecodeSettings, num_processes: int
) -> Generator[Outcome]:
    """Yield every path's clip, in their order; close the iterator to stop the processes.

    Raises:
        DataError: decoder processes can't be started at all.
    """
    return read_all(paths, settings, num_processes, decode_clip)


def read_all(
    paths: Sequence[Path], settings: S, num_processes: int, decode: Callable[[Path, S], R | str]
) -> Generator[R | str]:
    """Yield what `decode` makes of every path, in their order, or why that can't be.

    With 0 processes it decodes in this one, which then dies of what kills a decoder.

    When a process dies, the clips it may have died of are decoded once more, each in a process of
    its own, so that only the culprit is lost.

    Raises:
        DataError: decoder processes can't be started at all.
    """
    if num_processes == 0:
        yield from (decode(path, settings) for path in paths)
        return
    todo = deque(paths)
    while todo:
        pending: deque[tuple[Path, Future[R | str]]] = deque()
        pool = open_pool(num_processes)
        try:
            while todo or pending:
                while todo and len(pending) < CLIPS_AHEAD * num_processes:
                    pending.append((todo[0], submit(pool, decode, todo[0], settings)))
                    todo.popleft()
                outcome = pending[0][1].result()
                pending.popleft()
                yield outcome
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(cancel_futures=True)
        for path, future in pending:
            yield _salvage(path, future, settings, decode)


def _salvage(
    path: Path, future: Future[R | str], settings: S, decode: Callable[[Path, S], R | str]
) -> R | str:
    """Return the outcome of a clip that was under way when a process died."""
    if future.done() and not future.cancelled() and future.exception() is None:
        return future.result()
    pool = open_pool(1)
    try:
        submit(pool, os.getpid).result()
    except BrokenProcessPool as error:
        pool.shutdown()
        raise DataError(
            "decoder processes end at their start; is there memory left? "
            "What is decoded is kept: make room and run melsearch prepare again"
        ) from error
    try:
        return submit(pool, decode, path, settings).result()
    except BrokenProcessPool:
        return CRASHED
    finally:
        pool.shutdown(cancel_futures=True)


def open_pool(num_processes: int) -> ProcessPoolExecutor:
    """Return a pool of processes of one core each that end with this one, killed or not."""
    # Spawned, as a fork would copy the locks of torch's and FFmpeg's threads in whatever state.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_processes, mp_context=context, initializer=_start_process)


def submit(
    pool: ProcessPoolExecutor, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> Future[R]:
    """Submit a call; the processes it starts never see Ctrl-C, their parent does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(call, *args, **kwargs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_process() -> None:
    """Make a process end with its parent and use one core."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Left alone by a killed parent they would wait for ever: they hold both ends of the pipe.
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)
