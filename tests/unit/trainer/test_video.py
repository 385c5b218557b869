"""Frames of a file's picture: which moments, which part of the frame, and what if there is none."""

from pathlib import Path

import av
import numpy as np
import pytest

from tests.media import make_tone, write_media, write_silent_picture
from trainer.audio import NoSoundError
from trainer.decode import DecodedClip, DecodeSettings, decode_clip
from trainer.faces import crop_face, track_face
from trainer.index import MOMENTS, frame_shape
from trainer.sample_data import render_sample_data
from trainer.video import decode_frames, decode_mono_or_silence

SIZE = 32
RATE = 25


def write_steps(path: Path, num_frames: int, rotation: int = 0) -> Path:
    """Write a video without a face whose frame number k is all of the grey level 4 k."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE, width=64, height=48, pix_fmt="yuv420p")
        stream.bit_rate = 2_000_000
        for number in range(num_frames):
            picture = np.full((48, 64, 3), 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return path


def test_moments_are_spread_over_the_sound_with_the_next_frame_each(tmp_path: Path) -> None:
    """The first frame at or after (i + 1/2) / 16 of the sound's length, and the one behind it."""
    frames = decode_frames(write_steps(tmp_path / "a.mp4", 50), SIZE, 2.0)
    assert frames.shape == frame_shape(SIZE)
    found = frames.mean(axis=(2, 3, 4)) / 4
    moments = (np.arange(MOMENTS) + 0.5) / MOMENTS * 2.0
    first = np.ceil(moments * RATE - 1e-9)
    expected = np.stack([first, np.minimum(first + 1, 49)], axis=1)
    assert np.abs(found - expected).max() < 0.6


def test_picture_that_ends_early_stands_still(tmp_path: Path) -> None:
    """The moments behind its end show its last frame, twice."""
    frames = decode_frames(write_steps(tmp_path / "a.mp4", 25), SIZE, 2.0)
    levels = frames.mean(axis=(2, 3, 4)) / 4
    assert np.abs(levels[MOMENTS // 2 :] - 24).max() < 0.6
    assert np.ptp(levels[MOMENTS // 2 :]) < 0.1
    assert levels[0, 0] < 3


def test_picture_of_one_frame_is_seen(tmp_path: Path) -> None:
    """A still counts as a picture, both frames of each moment alike."""
    frames = decode_frames(write_steps(tmp_path / "a.mp4", 1), SIZE, 1.0)
    assert np.ptp(frames) < 8


@pytest.mark.parametrize("name", ["sound.wav", "damaged.mp4"])
def test_without_a_picture_the_frames_are_black(tmp_path: Path, name: str) -> None:
    """A sound alone, or a picture that can't be decoded, is no reason to reject the clip."""
    path = write_media(tmp_path / "whole.mp4", make_tone(seconds=1.0), video=True)
    if name.endswith("wav"):
        path = write_media(tmp_path / name, make_tone(seconds=1.0))
    else:
        path = break_picture(path, tmp_path / name)
    clip = decode_clip(path, DecodeSettings(8000, notebook_images=False, frame_size=SIZE))
    assert isinstance(clip, DecodedClip)
    assert not any(clip.frames)
    assert (len(clip.frames), clip.lacks) == (np.prod(frame_shape(SIZE)), "picture")
    assert any(clip.samples)


def break_picture(path: Path, broken: Path) -> Path:
    """Copy a video with its picture's bytes zeroed, so that no frame of it can be decoded."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [x for x in container.demux(container.streams.video[0]) if x.size]
        for packet in packets:
            assert packet.pos is not None
            data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    broken.write_bytes(data)
    return broken


def test_without_sound_the_picture_is_kept(tmp_path: Path) -> None:
    """Where frames are wanted, a video without sound is silence as long as its picture."""
    path = write_silent_picture(tmp_path / "a.mp4")
    (samples,) = decode_mono_or_silence(path, [8000])
    assert len(samples) == round(5 / RATE * 8000)
    assert not samples.any()
    seen = decode_clip(path, DecodeSettings(8000, notebook_images=False, frame_size=SIZE))
    assert isinstance(seen, DecodedClip)
    assert (any(seen.frames), seen.lacks) == (True, "sound")
    assert decode_clip(path, DecodeSettings(8000, notebook_images=False)) == "no audio track"


def test_without_anything_it_is_rejected(tmp_path: Path) -> None:
    """Neither sound nor picture: the reason is the sound's."""
    path = write_media(tmp_path / "a.wav", np.zeros((1, 8000), np.float32))
    with pytest.raises(NoSoundError, match="silent"):
        decode_mono_or_silence(path, [8000])


def test_face_is_found_followed_and_cut_out(tmp_path: Path) -> None:
    """On rendered faces the cut holds the face, not the frame, and hardly jumps."""
    render_sample_data(tmp_path / "data", num_clips=8, seed=0)
    found = 0
    for path in sorted((tmp_path / "data").glob("*set/*.mp4")):
        with av.open(str(path)) as container:
            images = [x.to_ndarray(format="rgb24") for x in container.decode(video=0)][:MOMENTS]
        boxes = track_face(images)
        if boxes[0] is not None:
            found += 1
            sides = np.array([box[2] for box in boxes if box is not None])
            assert len(sides) == len(images)
            assert np.ptp(sides) < 0.2
    assert found > 0


def test_without_a_face_the_whole_frame_is_kept() -> None:
    """No box: the frame is squeezed into the square as it is."""
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 200
    assert track_face([image] * 3) == [None] * 3
    cut = crop_face(image, None, SIZE)
    assert cut.shape == (SIZE, SIZE, 3)
    assert cut[:, : SIZE // 2].mean() < 1
    assert cut[:, SIZE // 2 :].mean() > 199


def test_box_at_the_edge_repeats_the_edge() -> None:
    """A face that is half outside is cut from a frame that goes on with its outermost pixels."""
    image = np.full((60, 60, 3), 90, np.uint8)
    cut = crop_face(image, np.array([0.0, 0.0, 0.5]), SIZE)
    assert (cut == 90).all()
