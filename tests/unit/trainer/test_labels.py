"""Label files: what is accepted, and how each fault is named."""

from pathlib import Path

import pytest

from trainer.labels import LabelFile, read_labels


def read(tmp_path: Path, data: str | bytes) -> LabelFile:
    path = tmp_path / "trainset_label.txt"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_labels(path)


@pytest.mark.parametrize(
    "text",
    [
        "video_name,target\na.mp4,0\nb.mp4,1\n",
        "\ufeffvideo_name,target\na.mp4,0\nb.mp4,1\n",
        "video_name,target\r\na.mp4,0\r\nb.mp4,1\r\n",
        "video_name,target\ra.mp4,0\rb.mp4,1",
        "video_name,target\na.mp4,real\nb.mp4,FAKE",
        " Video_Name , Target\n\na.mp4, 0\n\n\nb.mp4,1 \n",
        'target,speaker,video_name\n0,x,a.mp4\n1,"y, z",b.mp4\n',
    ],
    ids=["plain", "bom", "crlf", "cr", "words", "spaces", "columns"],
)
def test_every_usual_spelling_of_a_label_file_reads_the_same(tmp_path: Path, text: str) -> None:
    """Byte order mark, line ends, words for labels, spaces and column order don't matter."""
    table = read(tmp_path, text)
    assert [(row.name, row.target) for row in table.rows] == [("a.mp4", 0), ("b.mp4", 1)]
    assert not table.faults


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("a.mp4,2", "target must be 0, 1, real or fake, got '2'"),
        ("a.mp4,0.0", "target must be 0, 1, real or fake, got '0.0'"),
        ("a.mp4,", "target must be 0, 1, real or fake, got ''"),
        ("a.mp4", "has 1 fields, the header 2: ['a.mp4']"),
        ("a,b.mp4,1", "has 3 fields, the header 2: ['a', 'b.mp4', '1']"),
        ("../a.mp4,1", "video_name must stay inside the folder of its split, got '../a.mp4'"),
        ("x\\..\\..\\a.mp4,1", "video_name must stay inside the folder of its split"),
        ("/etc/passwd,1", "video_name must be relative to the folder of its split"),
        ("C:\\a.mp4,1", "video_name must be relative to the folder of its split"),
        ("a\0.mp4,1", "video_name must not hold a NUL character"),
        ("./,1", "video_name must name a file"),
        (",1", "video_name must name a file"),
        ('"a.mp4"x,1', "isn't valid CSV"),
        ('"a.mp4,1', "isn't valid CSV"),
        (b"caf\xe9.mp4,1", "isn't UTF-8"),
    ],
)
def test_fault_of_a_row_is_named_with_its_line(
    tmp_path: Path, row: str | bytes, fault: str
) -> None:
    """A row that can't be used says so with file, line and what it got."""
    data = row.encode() if isinstance(row, str) else row
    table = read(tmp_path, b"video_name,target\nok.mp4,0\n" + data)
    assert len(table.faults) == 1
    assert table.faults[0].startswith("trainset_label.txt, line 3: ")
    assert fault in table.faults[0]


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    """One reading finds every faulty row, not the first alone."""
    table = read(tmp_path, b"video_name,target\na,2\n../b,1\nc\xff,1\nd\ne,1\n")
    assert [fault.split(":")[0].rsplit(" ", 1)[1] for fault in table.faults] == list("2345")
    assert [row.name for row in table.rows] == ["e"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "line 1: needs one column video_name and one target, got []"),
        ("video_name,label\na.mp4,1\n", "line 1: needs one column target"),
        ("video_name\ttarget\na.mp4\t1\n", "line 1: needs one column video_name and one target"),
        ("video_name,target,target\na.mp4,1,0\n", "line 1: needs one column target"),
        ("a.mp4,1\n", "line 1: needs one column video_name and one target, got ['a.mp4', '1']"),
        ("video_name,target\n\n", "has no rows below its header"),
    ],
)
def test_missing_column_is_one_fault(tmp_path: Path, text: str, fault: str) -> None:
    """A header that lacks a column is the only fault, and says what it has instead."""
    table = read(tmp_path, text)
    assert len(table.faults) == 1
    assert fault in table.faults[0]


def test_other_encoding_is_one_fault(tmp_path: Path) -> None:
    """A file in UTF-16, as some editors save it, is told to be saved as UTF-8."""
    table = read(tmp_path, "video_name,target\na.mp4,1\n".encode("utf-16"))
    assert "isn't UTF-8" in table.faults[0]


def test_repeated_row_counts_once_and_is_a_warning(tmp_path: Path) -> None:
    """A clip that is listed twice with the same label loses nothing."""
    table = read(tmp_path, "video_name,target\na.mp4,1\n./a.mp4,fake\n")
    assert [row.name for row in table.rows] == ["a.mp4"]
    assert table.warnings == ["trainset_label.txt, line 3: './a.mp4' again, as in 2"]
    assert not table.faults


def test_contradictory_rows_are_a_fault(tmp_path: Path) -> None:
    """A clip that is listed as real and as fake names both lines."""
    table = read(tmp_path, "video_name,target\na.mp4,1\na.mp4,0\n")
    assert table.faults == ["trainset_label.txt, line 3: 'a.mp4' is 0, but 1 in line 2"]


def test_name_may_hold_a_comma_and_a_newline_in_quotes(tmp_path: Path) -> None:
    """Quoted names keep what CSV would split, and lines are still counted right."""
    table = read(tmp_path, 'video_name,target\n"a,\nb.mp4",1\nc.mp4,7\n')
    assert table.rows[0].name == "a,\nb.mp4"
    assert table.faults[0].startswith("trainset_label.txt, line 4: ")


def test_label_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """A folder in the place of the label file is a fault, not a crash."""
    assert read_labels(tmp_path).faults == [f"{tmp_path.name}: can't be read, Is a directory"]
