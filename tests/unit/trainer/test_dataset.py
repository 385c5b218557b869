"""The FFDV folder: what is found, what is rejected, what is refused."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.privileges import unprivileged
from trainer.dataset import Reject, find_media, read_dataset, read_submission_rows
from trainer.errors import DataError


def make(root: Path, **splits: dict[str, int]) -> Path:
    """Write labels and files of one byte, which is all that reading a folder looks at."""
    for split, targets in splits.items():
        (root / f"{split}set").mkdir(parents=True)
        for name in targets:
            (root / f"{split}set" / name).write_bytes(b"x")
        rows = "".join(f'"{name}",{target}\n' for name, target in targets.items())
        (root / f"{split}set_label.txt").write_text(f"video_name,target\n{rows}", "utf-8")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make(tmp_path / "data", train={"b.mp4": 1, "a.mp4": 0}, val={"c.mp4": 1, "d.mp4": 0})


def test_clips_come_by_split_and_name_whatever_the_order_of_the_labels(data: Path) -> None:
    """Two label files that differ in order alone give the same dataset."""
    dataset = read_dataset(data)
    assert [(clip.split, clip.name, clip.target) for clip in dataset.clips] == [
        ("train", "a.mp4", 0),
        ("train", "b.mp4", 1),
        ("val", "c.mp4", 1),
        ("val", "d.mp4", 0),
    ]
    assert dataset.clips[0].path == data / "trainset" / "a.mp4"
    assert (dataset.rejects, dataset.warnings) == ((), ())


def test_short_spelling_of_the_label_files_is_read_too(data: Path) -> None:
    """train_label.txt and val_label.txt are as good as the long names."""
    for split in ("train", "val"):
        (data / f"{split}set_label.txt").rename(data / f"{split}_label.txt")
    assert len(read_dataset(data).clips) == 4


def test_both_spellings_may_stand_side_by_side_if_they_agree(data: Path) -> None:
    """A copy under the other name changes nothing."""
    (data / "train_label.txt").write_text("video_name,target\na.mp4,0\nb.mp4,1\n")
    assert len(read_dataset(data).clips) == 4


def test_both_spellings_that_differ_are_refused(data: Path) -> None:
    """Which of two label files is right is not guessed."""
    (data / "train_label.txt").write_text("video_name,target\na.mp4,1\nb.mp4,1\n")
    with pytest.raises(DataError, match=r"trainset_label.txt and train_label.txt differ"):
        read_dataset(data)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    """A folder that isn't there is named, with the system's own reason."""
    with pytest.raises(DataError, match=r"can't open the folder .*nowhere: No such file"):
        read_dataset(tmp_path / "nowhere")


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A file given as the data folder is refused."""
    (tmp_path / "data.zip").write_bytes(b"x")
    with pytest.raises(DataError, match=r"not a folder: .*data.zip"):
        read_dataset(tmp_path / "data.zip")


def test_empty_folder_names_everything_it_lacks(tmp_path: Path) -> None:
    """One message lists both folders and both label files."""
    with pytest.raises(DataError, match="4 faults") as caught:
        read_dataset(tmp_path)
    for part in ("trainset/", "valset/", "trainset_label.txt", "val_label.txt"):
        assert part in str(caught.value)


def test_missing_label_file_is_refused(data: Path) -> None:
    """Both accepted names are given."""
    (data / "valset_label.txt").unlink()
    with pytest.raises(DataError, match=r"valset_label.txt: no such file \(nor val_label.txt\)"):
        read_dataset(data)


def test_faults_of_both_label_files_are_named_at_once(data: Path) -> None:
    """The user mends all labels in one go."""
    (data / "trainset_label.txt").write_text("video_name,target\na.mp4,2\nb.mp4,1\n")
    (data / "valset_label.txt").write_text("video_name,target\nc.mp4,1\nc.mp4,0\n")
    with pytest.raises(DataError, match=r"(?s)2 faults:.*train.*line 2.*\n.*val.*line 3"):
        read_dataset(data)


def test_long_list_of_faults_is_capped(data: Path) -> None:
    """A label file that is wrong throughout doesn't flood the terminal."""
    rows = "".join(f"{i}.mp4,2\n" for i in range(1000))
    (data / "trainset_label.txt").write_text("video_name,target\n" + rows)
    with pytest.raises(DataError, match="1000 faults") as caught:
        read_dataset(data)
    assert str(caught.value).endswith("and 980 more")
    assert len(str(caught.value).splitlines()) == 22


def test_label_without_file_and_file_without_label_are_rejects(data: Path) -> None:
    """What doesn't pair up is listed, and the rest is used."""
    (data / "trainset" / "a.mp4").rename(data / "trainset" / "z.mp4")
    dataset = read_dataset(data)
    assert dataset.rejects == (
        Reject("train", "a.mp4", "no such file"),
        Reject("train", "z.mp4", "no label"),
    )
    assert len(dataset.clips) == 3


def test_split_without_any_labelled_file_is_refused(data: Path) -> None:
    """Labels of some other folder are a mistake, not a thousand rejects."""
    for name in ("a", "b"):
        (data / "trainset" / f"{name}.mp4").unlink()
    with pytest.raises(DataError, match=r"trainset/: none of the 2 labelled files.*no such file"):
        read_dataset(data)


def test_folder_named_like_a_video_is_a_reject(data: Path) -> None:
    """A labelled folder is rejected by that name; an unlabelled one is passed over."""
    (data / "trainset" / "a.mp4").unlink()
    (data / "trainset" / "a.mp4").mkdir()
    (data / "trainset" / "other.mp4").mkdir()
    assert read_dataset(data).rejects == (Reject("train", "a.mp4", "a folder, not a file"),)


def test_pipe_named_like_a_video_is_a_reject(data: Path) -> None:
    """A pipe would be waited for for ever, so it is never opened."""
    (data / "trainset" / "a.mp4").unlink()
    os.mkfifo(data / "trainset" / "a.mp4")
    assert read_dataset(data).rejects == (Reject("train", "a.mp4", "not a regular file"),)


def test_link_that_leads_nowhere_is_a_reject(data: Path) -> None:
    """Links to nothing and links in a circle are told apart from files."""
    for name, aim in (("a.mp4", "gone"), ("b.mp4", "b.mp4")):
        (data / "trainset" / name).unlink()
        (data / "trainset" / name).symlink_to(aim)
    (data / "trainset" / "e.mp4").write_bytes(b"x")
    (data / "trainset_label.txt").write_text("video_name,target\na.mp4,0\nb.mp4,1\ne.mp4,1\n")
    reasons = [reject.reason for reject in read_dataset(data).rejects]
    assert reasons == ["no such file", "unreadable"]


def test_unreadable_file_is_a_reject() -> None:
    """A file that its mode forbids to read is rejected before any decoding."""
    with tempfile.TemporaryDirectory() as folder:
        data = make(Path(folder), train={"a.mp4": 0, "b.mp4": 1}, val={"c.mp4": 0})
        data.chmod(0o755)
        (data / "trainset" / "a.mp4").chmod(0)
        with unprivileged():
            assert read_dataset(data).rejects == (Reject("train", "a.mp4", "unreadable"),)


def test_unreadable_folder_is_refused() -> None:
    """A folder that its mode forbids to list is a clear refusal."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0)
        with unprivileged(), pytest.raises(DataError, match="Permission denied"):
            read_dataset(Path(folder))


def test_odd_names_are_found(tmp_path: Path) -> None:
    """Spaces, any script and even a newline in a name are fine."""
    odd = {" two  words .mp4": 0, "голос-声音-🎤.mp4": 1, "two\nlines.mp4": 0, "-rf.mp4": 1}
    dataset = read_dataset(make(tmp_path, train=odd, val=odd))
    assert {clip.name for clip in dataset.clips} == set(odd)
    assert not dataset.rejects


def test_name_in_another_unicode_form_finds_its_file(tmp_path: Path) -> None:
    """A label written on one system pairs with the file name that another system made."""
    data = make(tmp_path, train={"cafe\u0301.mp4": 1}, val={"a.mp4": 0})
    (data / "trainset_label.txt").write_text("video_name,target\ncaf\u00e9.mp4,1\n", "utf-8")
    dataset = read_dataset(data)
    assert [clip.name for clip in dataset.clips] == ["caf\u00e9.mp4", "a.mp4"]
    assert not dataset.rejects


def test_file_name_outside_of_utf8_is_a_printable_reject(data: Path) -> None:
    """No label can name it, and its reject can be printed all the same."""
    Path(os.fsdecode(os.fsencode(data / "trainset") + b"/x\xff.mp4")).write_bytes(b"x")
    assert read_dataset(data).rejects == (Reject("train", "x\\xff.mp4", "no label"),)


def test_find_media_knows_suffixes_and_leaves_out_the_rest(tmp_path: Path) -> None:
    """Folders, hidden files and other kinds of files aren't media; case doesn't matter."""
    for name in ("b.MP4", "a.wav", ".hidden.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.mp4").mkdir()
    assert [path.name for path in find_media(tmp_path)] == ["a.wav", "b.MP4"]


def test_submission_rows_keep_their_order(data: Path) -> None:
    """The rows come as the file has them; without the file there are none to obey."""
    assert read_submission_rows(data) is None
    (data / "prediction.txt.csv").write_text("video_name,y_pred\nd.mp4,0.5\nc.mp4,0.5\n")
    assert read_submission_rows(data) == ["d.mp4", "c.mp4"]


def test_submission_file_with_a_fault_is_refused(data: Path) -> None:
    """A submission file without its column of names is named with its fault."""
    (data / "prediction.txt.csv").write_text("name,y_pred\nd.mp4,0.5\n")
    with pytest.raises(DataError, match=r"prediction.txt.csv, line 1: needs one column video_name"):
        read_submission_rows(data)
