"""A search over what the detector hears and sees, and its winner on files that lack a stream."""

import csv
import json
import shutil

import av
import pytest

from storage.embedded import embedded_server
from tests.command import TINY_STUDY, run, succeed, user_folder
from tests.media import small_clips, write_dataset, write_silent_picture

SEEING = """
modality = "both"
video_backbone = "test_resnet"
frame_size = 32
synchrony = true
modality_dropout = 0.3
"""


def test_search_over_both_streams_ends_in_a_submission() -> None:
    """`up` prepares frames, a trial is trained as the final model, and files lack a stream."""
    assert "[training]\n" in TINY_STUDY
    study = TINY_STUDY.replace("[training]\n", "[training]\n" + SEEING.lstrip())
    with user_folder() as folder, embedded_server(folder / ".melsearch" / "postgres"):
        succeed(folder, "sample-data", "demo", "--clips", "12", "--seed", "1")
        (folder / "study.toml").write_text(study)
        succeed(folder, "up", "study.toml", "--data", "demo", "--port", "0")
        succeed(folder, "export", "tiny", "--trial", "1")
        assert 'modality = "both"' in (folder / "best.toml").read_text()
        succeed(folder, "train", "best.toml")
        clips = sorted((folder / "demo" / "valset").iterdir())[:2]
        files = folder / "files"
        files.mkdir()
        shutil.copy(clips[0], files / "whole.mp4")
        copy_sound(str(clips[1]), str(files / "deaf.m4a"))
        write_silent_picture(files / "mute.mp4")
        succeed(folder, "predict", "model", "files")
        with (folder / "submission.csv").open() as file:
            rows = {row["video_name"]: float(row["y_pred"]) for row in csv.DictReader(file)}
        assert set(rows) == {"whole.mp4", "deaf.m4a", "mute.mp4"}
        assert len(set(rows.values())) == 3
        succeed(folder, "evaluate", "model", "demo")
        metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
        assert metrics


def copy_sound(source: str, target: str) -> None:
    """Copy a video's sound alone into another file."""
    with av.open(source) as given, av.open(target, "w") as made:
        track = given.streams.audio[0]
        stream = made.add_stream_from_template(track)
        for packet in given.demux(track):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)


def test_worker_without_the_copies_that_trials_read_does_not_join() -> None:
    """Data that were prepared without codecs are those of the study, but not all of them."""
    study = TINY_STUDY + '[space.codec_share]\ntype = "float"\nlow = 0.0\nhigh = 0.5\n'
    with user_folder() as folder, embedded_server(folder / ".melsearch" / "postgres"):
        write_dataset(folder / "data", small_clips())
        (folder / "study.toml").write_text(study)
        succeed(folder, "create", "study.toml", "--data", "data")
        elsewhere = folder / "elsewhere"
        other = {"MELSEARCH_HOME": str(elsewhere)}
        succeed(folder, "prepare", "data", environ=other)
        (elsewhere / "postgres").symlink_to(folder / ".melsearch" / "postgres")
        refused = run(folder, "worker", "tiny", environ=other)
        assert refused.code == 2
        assert "hold no such copies; run `melsearch prepare DATA --study STUDY.toml`" in refused.err
        succeed(folder, "prepare", "data", "--study", "study.toml", environ=other)
        succeed(folder, "worker", "tiny", environ=other)
        assert json.loads(succeed(folder, "status", "tiny", "--json"))["counts"]["complete"] == 3


def test_study_without_pictures_is_not_made_of_data_with_frames() -> None:
    """Their fingerprint is not that of what the study itself prepares, here and on other hosts."""
    with user_folder() as folder, embedded_server(folder / ".melsearch" / "postgres"):
        write_dataset(folder / "data", small_clips())
        (folder / "study.toml").write_text(TINY_STUDY)
        succeed(folder, "prepare", "data", "--video")
        refused = run(folder, "create", "study.toml")
        assert refused.code == 2
        assert "the study reads no frames, the prepared data have frames of 64" in refused.err
        succeed(folder, "create", "study.toml", "--data", "data")
        elsewhere = folder / "elsewhere"
        other = {"MELSEARCH_HOME": str(elsewhere)}
        succeed(folder, "prepare", "data", "--study", "study.toml", environ=other)
        (elsewhere / "postgres").symlink_to(folder / ".melsearch" / "postgres")
        succeed(folder, "create", "study.toml", environ=other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--frame-size", "64"), "--frame-size is of no use without --video"),
        (("--study", "study.toml", "--video"), "--study says what to keep already"),
        (("--study", "study.toml", "--codecs"), "--study says what to keep already"),
    ],
)
def test_options_that_contradict_are_told(options: tuple[str, ...], words: str) -> None:
    """Before anything is decoded, with exit code 2."""
    with user_folder() as folder:
        write_dataset(folder / "data", small_clips())
        (folder / "study.toml").write_text(TINY_STUDY)
        result = run(folder, "prepare", "data", *options)
        assert (result.code, words in result.err) == (2, True)
        assert not (folder / ".melsearch").exists()
