"""The sample data: its layout, its determinism, its refusals, and that it can't be had cheaply."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.privileges import unprivileged
from trainer.errors import DataError
from trainer.sample_data import MIN_CLIPS, render_sample_data
from trainer.sample_face import FRAMES_PER_SECOND, SIZE, draw_face
from trainer.sample_sound import render_sound, resynthesize
from trainer.sample_voice import SAMPLE_RATE

NUM_CLIPS = 10
NUM_SOUNDS = 60


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def decode_sound(path: Path) -> NDArray[np.float32]:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "set"
    render_sample_data(out, num_clips=NUM_CLIPS, seed=3, num_processes=1)
    return out


@pytest.fixture(scope="module")
def sounds() -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Sounds of random length without a video, and their targets."""
    lengths = np.random.default_rng(5).integers(24_000, 48_000, size=NUM_SOUNDS)
    targets = np.arange(NUM_SOUNDS) % 2
    rendered = [
        render_sound(int(target), int(length), np.random.default_rng([5, index]))
        for index, (target, length) in enumerate(zip(targets, lengths, strict=True))
    ]
    return rendered, targets


def separation(figures: list[float], targets: NDArray[np.int64]) -> float:
    """Return the area under the ROC curve, the better way round: 0.5 is chance."""
    figures_N = np.array(figures)
    pairs = figures_N[targets == 1][:, None] - figures_N[targets == 0][None, :]
    area = float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    return max(area, 1 - area)


def test_set_has_the_ffdv_layout(sample_set: Path) -> None:
    """Every labelled video exists, none is unlabelled, and nothing else lies around."""
    assert sorted(entry.name for entry in sample_set.iterdir()) == [
        "README.md",
        "prediction.txt.csv",
        "trainset",
        "trainset_label.txt",
        "valset",
        "valset_label.txt",
    ]
    for split, size in (("trainset", 7), ("valset", 3)):
        names = [row["video_name"] for row in read_rows(sample_set / f"{split}_label.txt")]
        assert len(names) == size
        assert sorted(names) == sorted(path.name for path in (sample_set / split).iterdir())


def test_both_splits_have_both_classes(sample_set: Path) -> None:
    """Each label file has targets 0 and 1 and no others."""
    for split in ("trainset", "valset"):
        rows = read_rows(sample_set / f"{split}_label.txt")
        assert {row["target"] for row in rows} == {"0", "1"}


def test_submission_template_has_half_for_each_validation_clip(sample_set: Path) -> None:
    """The rows of prediction.txt.csv are the validation clips, each at 0.5."""
    rows = read_rows(sample_set / "prediction.txt.csv")
    labels = read_rows(sample_set / "valset_label.txt")
    assert [row["video_name"] for row in rows] == [row["video_name"] for row in labels]
    assert {row["y_pred"] for row in rows} == {"0.5"}


def test_readme_says_that_it_is_synthetic(sample_set: Path) -> None:
    """The set's README says what it is and the command that makes it again."""
    readme = (sample_set / "README.md").read_text(encoding="utf-8")
    assert "synthetic" in readme
    assert "--clips 10 --seed 3" in readme


def test_videos_decode_with_picture_and_sound(sample_set: Path) -> None:
    """Each mp4 has an H.264 and an AAC stream of 1.5 to 3 s, and a sound that isn't silent."""
    for path in sample_set.glob("*/*.mp4"):
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, video.average_rate) == (SIZE, SIZE, 12)
            assert audio.rate == SAMPLE_RATE
            num_pictures = sum(1 for _ in container.decode(video=0))
        sound = decode_sound(path)
        assert 1.5 <= num_pictures / FRAMES_PER_SECOND <= 3.0
        assert sound.shape[1] / SAMPLE_RATE == pytest.approx(num_pictures / 12, abs=0.2)
        assert np.abs(sound).max() > 0.01


def test_same_seed_gives_the_same_set_on_any_number_of_processes(
    sample_set: Path, tmp_path: Path
) -> None:
    """Two processes give the labels and the sound that one gives, and report all progress."""
    calls: list[tuple[int, int]] = []
    render_sample_data(
        tmp_path / "again",
        num_clips=NUM_CLIPS,
        seed=3,
        num_processes=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, NUM_CLIPS) for done in range(NUM_CLIPS + 1)]
    for name in ("trainset_label.txt", "valset_label.txt", "prediction.txt.csv", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (sample_set / name).read_bytes()
    for path in sample_set.glob("*/*.mp4"):
        again = tmp_path / "again" / path.relative_to(sample_set)
        np.testing.assert_array_equal(decode_sound(again), decode_sound(path))


def test_smallest_set_goes_into_an_empty_folder_and_differs_by_seed(
    sample_set: Path, tmp_path: Path
) -> None:
    """MIN_CLIPS is enough for both classes in both splits, and another seed has other clips."""
    render_sample_data(tmp_path, num_clips=MIN_CLIPS, seed=4, num_processes=1)
    for split in ("trainset", "valset"):
        rows = read_rows(tmp_path / f"{split}_label.txt")
        assert {row["target"] for row in rows} == {"0", "1"}
        others = read_rows(sample_set / f"{split}_label.txt")
        assert not {row["video_name"] for row in rows} & {row["video_name"] for row in others}
    assert not list(tmp_path.glob(".*"))


def test_folder_with_content_is_refused_and_kept(tmp_path: Path) -> None:
    """A folder that holds anything is neither written to nor emptied."""
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(DataError, match="is not empty, give a folder that is new or empty"):
        render_sample_data(tmp_path, num_clips=MIN_CLIPS, seed=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_all_wrong_arguments_are_named_at_once(tmp_path: Path) -> None:
    """A file as target, too few clips, a negative seed and no process are one message."""
    taken = tmp_path / "file"
    taken.touch()
    with pytest.raises(DataError) as caught:
        render_sample_data(taken, num_clips=7, seed=-1, num_processes=0)
    message = str(caught.value)
    assert "at least 8" in message
    assert "got 7" in message
    assert "seed must be 0 or more, got -1" in message
    assert "processes must be at least 1, got 0" in message
    assert "is a file" in message


def test_interrupted_rendering_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle leaves neither the set nor what was rendered of it."""

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_sample_data(
            tmp_path / "set", num_clips=MIN_CLIPS, seed=0, num_processes=1, progress=interrupt
        )
    assert list(tmp_path.iterdir()) == []


def test_target_below_a_file_is_a_data_error(tmp_path: Path) -> None:
    """An error of the file system names the target and becomes a DataError."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="can't render sample data into"):
        render_sample_data(tmp_path / "file" / "set", num_clips=MIN_CLIPS, seed=0)


def test_unwritable_parent_is_a_data_error(tmp_path: Path) -> None:
    """A folder without the right to write is refused by name."""
    tmp_path.chmod(0o500)
    with (
        unprivileged(),
        pytest.raises(DataError, match="can't render sample data into"),
    ):
        render_sample_data(tmp_path / "set", num_clips=MIN_CLIPS, seed=0)


def test_no_shortcut_by_level_or_silence_tells_the_classes_apart(
    sounds: tuple[list[NDArray[np.float64]], NDArray[np.int64]],
) -> None:
    """RMS, peak and leading silence of 60 sounds stay at chance within their sampling error."""
    rendered, targets = sounds
    envelopes = [np.abs(sound[: len(sound) // 160 * 160]).reshape(-1, 160) for sound in rendered]
    loud = [block.mean(axis=1) for block in envelopes]
    starts = [float(np.argmax(track > 0.1 * track.max())) for track in loud]
    assert separation([float(sound.std()) for sound in rendered], targets) < 0.68
    assert separation([float(np.abs(sound).max()) for sound in rendered], targets) < 0.68
    assert separation(starts, targets) < 0.68


def test_change_of_the_spectrum_over_time_tells_something_but_not_all(
    sounds: tuple[list[NDArray[np.float64]], NDArray[np.int64]],
) -> None:
    """Spoof is smoother from frame to frame, which a single figure shows but doesn't decide."""
    rendered, targets = sounds
    roughness = []
    for sound in rendered:
        frames = np.lib.stride_tricks.sliding_window_view(sound, 512)[::256]
        log_power = np.log(np.abs(np.fft.rfft(frames * np.hanning(512), axis=1)) ** 2 + 1e-9)
        roughness.append(float(np.abs(np.diff(log_power, axis=0)).mean()))
    assert 0.6 < separation(roughness, targets) < 0.95


def test_resynthesis_with_all_detail_and_phase_is_the_identity() -> None:
    """At the human end of the vocoder's traits the voice passes unchanged."""
    voice = np.random.default_rng(0).standard_normal(5_000)
    again = resynthesize(voice, 1.0, 1.0, np.random.default_rng(1))
    np.testing.assert_allclose(again, voice, atol=1e-3)


def test_mouth_is_open_when_the_sound_is_loud() -> None:
    """Pictures differ by more than the sway between a silent and a loud second."""
    sound = np.concatenate([np.full(SAMPLE_RATE, 1e-4), np.full(SAMPLE_RATE, 0.5)])
    pictures = draw_face(sound, 24, np.random.default_rng(0))
    mouths = [picture[75:110, 52:76].astype(float) for picture in pictures]
    dark = [float((mouth.max(axis=2) < 55).mean()) for mouth in mouths]
    assert np.mean(dark[13:]) > np.mean(dark[:11]) + 0.05
