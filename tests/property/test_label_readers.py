"""Label files, whatever is in them: read right if they are right, told in full if they aren't."""

import csv
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.labels import TARGETS, LabelFile, read_labels, read_names

FORBIDDEN = "/\\:\0"
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters=FORBIDDEN), min_size=1, max_size=20
).filter(lambda name: name.strip(".") and name.strip())
LABELS = st.sampled_from([*TARGETS, "Real", "FAKE", " 1", "0 "])
TABLES = st.dictionaries(NAMES, LABELS, min_size=1, max_size=30)


def read(data: bytes, reader: Callable[[Path], LabelFile] = read_labels) -> LabelFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trainset_label.txt"
        path.write_bytes(data)
        return reader(path)


def write(table: dict[str, str], line_end: str = "\n") -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([("video_name", "target"), *table.items()])
    return file.getvalue()


@given(TABLES, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_what_a_csv_writer_wrote_is_read_back(
    table: dict[str, str], line_end: str, with_mark: bool
) -> None:
    """Any names and labels survive quoting, line ends and a byte order mark."""
    got = read(write(table, line_end).encode("utf-8-sig" if with_mark else "utf-8"))
    assert got.faults == got.warnings == []
    expected = [(name, TARGETS[label.strip().lower()]) for name, label in table.items()]
    assert [(row.name, row.target) for row in got.rows] == expected


@given(st.binary(max_size=300))
@example(b"video_name,target\n\xff,1\n")
@example(b"\xef\xbb\xbf\xef\xbb\xbfvideo_name,target\na,1\n")
@example(b'video_name,target\n"')
def test_any_bytes_give_rows_or_faults_and_never_a_crash(body: bytes) -> None:
    """No content of a label file raises, and none passes without a word."""
    for data in (body, b"video_name,target\n" + body):
        require_told(read(data))


@given(TABLES.map(lambda table: write(table).encode()), st.data())
@settings(deadline=None)
def test_overwritten_file_gives_rows_or_faults(content: bytes, data: st.DataObject) -> None:
    """A sound file, cut off or overwritten anywhere, is read as far as it is sound, or told."""
    begin = data.draw(st.integers(0, len(content)))
    fresh = data.draw(st.binary(max_size=6) | st.sampled_from([b'"', b"\0", b"\r", b",,", b"\xff"]))
    content = content[:begin] + fresh + content[data.draw(st.integers(begin, len(content))) :]
    require_told(read(content))
    assert all(row.target == 0 for row in read(content, read_names).rows)


@pytest.mark.parametrize(
    "content",
    [
        b"video_name,target\n" + b"x" * 200_000 + b",1\n",
        b'video_name,target\n"' + b"x,1\n" * 50_000,
        b"video_name,target\n" + b"," * 200_000 + b"\n",
        b"," * 200_000,
        b"video_name,target\na," + b"9" * 5000 + b"\n",
        b"video_name,target\n" + b"a/" * 5000 + b"b,1\n",
    ],
    ids=["name", "quote", "fields", "header", "target", "path"],
)
def test_huge_fields_are_told(content: bytes) -> None:
    """What no spreadsheet ever wrote is a fault or a row, and fills no screen."""
    table = read(content)
    require_told(table)
    assert all(len(fault) < 6000 for fault in table.faults)


def require_told(table: LabelFile) -> None:
    """No file passes without a word, and what is said can be printed."""
    assert table.rows or table.faults
    "".join(table.faults + table.warnings).encode()
    assert all(row.target in (0, 1) for row in table.rows)


@given(TABLES, st.sets(st.integers(0, 29)), st.sampled_from(["2", "-1", "1.0", "true", "", "nan"]))
def test_each_wrong_label_is_one_fault(
    table: dict[str, str], wrong: set[int], bad_label: str
) -> None:
    """As many faults as wrong rows, and the right rows are read all the same."""
    rows = [
        (name, bad_label if i in wrong else label) for i, (name, label) in enumerate(table.items())
    ]
    num_wrong = sum(i in wrong for i in range(len(rows)))
    got = read(write(dict(rows)).encode())
    assert len(got.faults) == num_wrong
    assert len(got.rows) == len(rows) - num_wrong


@given(NAMES, st.sampled_from(["../{}", "a/../../{}", "/{}", "\\{}", "C:\\{}", "..\\{}", "{}/.."]))
def test_no_name_leads_out_of_its_folder(name: str, pattern: str) -> None:
    """Whatever the name, a path that climbs or starts at the root is refused."""
    got = read(write({pattern.format(name): "1"}).encode())
    assert not got.rows
    assert len(got.faults) == 1
