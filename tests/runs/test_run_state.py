"""``supervisor.json``: whoever reads it gets what was written, nothing where nothing was, and one line where it is damaged."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from miles_async.cli import app as cli
from miles_async.runs import state
from miles_async.runs.lock import RunLock
from miles_async.runs.state import STATE_FILE, RunState, RunStateError


def test_what_was_written_is_read_and_only_by_its_owner(tmp_path: Path) -> None:
    written = RunState("run-1", 7, os.getpid(), 1.0, 2.0, "redis://:secret@here", 9)
    state.write(tmp_path, written)
    assert state.read(tmp_path) == written
    assert stat.S_IMODE((tmp_path / STATE_FILE).stat().st_mode) == 0o600


def test_the_file_of_an_earlier_version_of_the_program_is_read(tmp_path: Path) -> None:
    text = '{"run_id": "run-1", "incarnation": 3, "pid": null, "started": 1.5, "process_started": 1.25, "more": [1]}'
    (tmp_path / STATE_FILE).write_text(text)
    assert state.read(tmp_path) == RunState("run-1", 3, None, 1.5, 1.25)


@pytest.mark.parametrize("emptied", [None, b"", b"\0" * 90])
def test_no_file_and_an_emptied_one_are_no_state(tmp_path: Path, emptied: bytes | None) -> None:
    if emptied is not None:
        (tmp_path / STATE_FILE).write_bytes(emptied)
    assert state.read(tmp_path) is None
    assert state.living(tmp_path) is None


@pytest.mark.parametrize("damage", [b"[1]", b"{}", b"\xff", b'{"run_id":"x","incarnation":"1"}', b"[" * 100_000])
def test_a_damaged_file_is_one_line_for_whoever_reads_it(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(damage)
    lock = RunLock(tmp_path)
    lock.take()
    try:
        with pytest.raises(RunStateError, match="is damaged"):
            state.living(tmp_path)
        for command in (["status"], ["inspect", "drops"], ["scale", "engines=1"]):
            words = [command[0], str(tmp_path), *command[1:]]
            result = CliRunner().invoke(cli.app, words)
            assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
            assert f"{tmp_path / STATE_FILE} is damaged" in result.stderr
    finally:
        lock.release()


def test_a_launch_that_only_begins_has_nothing_of_the_one_before_it_but_the_run(tmp_path: Path) -> None:
    state.write(tmp_path, RunState("run-1", 7, 1, bus_url="unix:///gone", redis_pid=2))
    lock = RunLock(tmp_path)
    lock.take()
    try:
        assert state.living(tmp_path) == RunState("run-1", 7, os.getpid())
    finally:
        lock.release()
