"""``supervisor.json``: whoever reads it gets what was written, nothing where nothing was, and one line where it is damaged."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from miles_async.cli import app as cli
from miles_async.monitor import status as status_of
from miles_async.runs import lock as locks
from miles_async.runs import state
from miles_async.runs.lock import RunInUseError, RunLock
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


def test_a_launch_on_another_machine_is_named_by_that_and_no_process_of_this_one_is_taken_for_its_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_of, "BUS_DEADLINE_S", 0.2)
    monkeypatch.setattr(locks.platform, "node", lambda: "node-7")
    lock = RunLock(tmp_path)
    lock.take()
    monkeypatch.undo()
    monkeypatch.setattr(status_of, "BUS_DEADLINE_S", 0.2)
    try:
        with pytest.raises(RunInUseError, match=rf"a launch that is alive \(pid {os.getpid()} on node-7\)"):
            RunLock(tmp_path).take(patience_s=0.0)
        there = RunState("run-1", 7, os.getpid(), bus_url="redis://127.0.0.1:1", redis_pid=os.getpid(), host="node-7")
        state.write(tmp_path, there)
        with pytest.raises(status_of.SilentBusError) as caught:
            status_of.status(tmp_path)
        assert caught.value.found["host"] == "node-7" and "no Redis answers at redis://127.0.0.1:1" in str(caught.value)
        assert status_of.show(caught.value.found, 0.0).startswith(f"running, pid {os.getpid()} on node-7\n")
        state.write(tmp_path, RunState("run-1", 7, os.getpid(), host="node-7"))
        assert status_of.show(status_of.status(tmp_path), 0.0) == f"starting, pid {os.getpid()} on node-7"
    finally:
        lock.release()
