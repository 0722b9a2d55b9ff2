"""A small file is whole on disk before it has its name, and its name is on disk before anybody goes on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from miles_async.disk.durable import write_whole


def test_a_file_is_on_disk_before_it_has_its_name_and_then_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "supervisor.json", list[tuple[str, str]]()
    path.write_text("before")
    fsync = os.fsync

    def note(file: int) -> None:
        seen.append((Path(os.readlink(f"/proc/self/fd/{file}")).name, path.read_text()))
        fsync(file)

    monkeypatch.setattr(os, "fsync", note)
    write_whole(path, b"after")
    assert seen == [("supervisor.json.partial", "before"), (tmp_path.name, "after")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "supervisor.json"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"after")
    assert path.read_text() == "before" and os.listdir(tmp_path) == [path.name]
