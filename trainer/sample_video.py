"""One sample video: the drawn face and the made voice of a planned clip in an mp4 file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.sample_face import FRAMES_PER_SECOND, ImageArray, draw_face
from trainer.sample_sound import render_sound
from trainer.sample_voice import SAMPLE_RATE, FloatArray

FEWEST_FRAMES, MOST_FRAMES = 18, 36
"""Video frames of a clip: 1.5 to 3 s."""


@dataclass(frozen=True)
class PlannedClip:
    """A clip that is to be rendered, by whichever process and in whatever order."""

    split: str
    """The name of its folder."""
    name: str
    target: int
    seed: tuple[int, int]


def render_clip(clip: PlannedClip, folder: Path) -> None:
    """Write the clip's video into the folder of its split, which must be there."""
    sound_rng, face_rng = np.random.default_rng(clip.seed).spawn(2)
    num_frames = int(face_rng.integers(FEWEST_FRAMES, MOST_FRAMES, endpoint=True))
    num_samples = num_frames * SAMPLE_RATE // FRAMES_PER_SECOND
    samples_T = render_sound(clip.target, num_samples, sound_rng)
    pictures = draw_face(samples_T, num_frames, face_rng)
    _write_video(folder / clip.split / clip.name, pictures, samples_T)


def _write_video(path: Path, pictures: list[ImageArray], samples_T: FloatArray) -> None:
    from moviepy import AudioArrayClip, ImageSequenceClip

    # Two equal channels: moviepy's AudioArrayClip always gives two, even if told one.
    sound = AudioArrayClip(np.stack([samples_T, samples_T], axis=1), fps=SAMPLE_RATE)
    video = ImageSequenceClip(pictures, fps=FRAMES_PER_SECOND).with_audio(sound)
    video.write_videofile(
        str(path),
        codec="libx264",
        preset="veryfast",
        threads=1,
        audio_codec="aac",
        audio_fps=SAMPLE_RATE,
        audio_nbytes=2,
        audio_bitrate="96k",
        temp_audiofile_path=str(path.parent),
        logger=None,
    )
    video.close()
