"""A file of lines that grows is read once, line by line."""

from __future__ import annotations

from pathlib import Path

from miles_async.monitor.growing import GrowingFile


def test_each_whole_line_is_given_once_and_a_torn_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = GrowingFile(path)
    assert file.more() == ([], False) and file.rest() == b""
    with path.open("ab", buffering=0) as out:
        out.write(b"one\n\ntw")
        assert file.more() == ([b"one", b""], False) and file.rest() == b"tw"
        assert file.more() == ([], False)
        out.write(b"o\n")
    assert file.more() == ([b"two"], False) and file.rest() == b""


def test_another_file_under_the_name_is_read_from_its_beginning_and_said(tmp_path: Path) -> None:
    path, other = tmp_path / "lines", tmp_path / "other"
    path.write_bytes(b"one\ntwo\n")
    file = GrowingFile(path)
    file.more()
    other.write_bytes(b"one\n2\n3\n")
    other.replace(path)
    assert file.more() == ([b"one", b"2", b"3"], True)
    assert file.more() == ([], False)
    path.write_bytes(b"1\n")
    assert file.more() == ([b"1"], True)
