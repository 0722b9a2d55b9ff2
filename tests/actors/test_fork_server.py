"""The fork server of a launch: stopped, it holds nobody up; and none is left when the launch is over."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.runtime import fork_server, local
from actors.runtime.local import LocalRuntime


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose actors sleep, and whose fork server has nothing to import."""
    fork_server.end()  # of another test
    monkeypatch.setattr(local, "PRELOAD", ["time"])
    runtime = LocalRuntime()
    yield runtime
    runtime.close()


def sleeper(runtime: LocalRuntime, name: str) -> int:
    runtime._processes[name] = process = runtime._context.Process(target=time.sleep, args=(1000,), name=name)
    process.start()
    assert process.pid is not None
    return process.pid


def test_a_stopped_fork_server_does_not_hold_up_the_end_of_a_run(runtime: LocalRuntime) -> None:
    sleeper(runtime, "actor")
    os.kill(sleeper(runtime, "stopped too"), signal.SIGSTOP)
    forks = fork_server.pid()
    assert forks is not None
    os.kill(forks, signal.SIGSTOP)
    runtime.end()
    assert [process.exitcode for process in runtime._processes.values()] == [-signal.SIGKILL, -signal.SIGKILL]


def test_an_actor_that_ended_with_the_fork_server_says_so(runtime: LocalRuntime) -> None:
    actor, forks = sleeper(runtime, "actor"), fork_server.pid()
    assert forks is not None
    os.kill(forks, signal.SIGKILL)
    (process,) = runtime._processes.values()
    process.join(10.0)
    os.kill(actor, signal.SIGKILL)  # this one was not told to die with its parent
    assert process.exitcode is not None
    assert local.how_it_ended(process.exitcode) == "the fork server ended, and it with that"
    assert local.how_it_ended(-9) == "killed by signal 9" and local.how_it_ended(1) == "exit code 1"


def test_a_fork_server_that_was_stopped_starts_who_is_to_start(
    runtime: LocalRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper(runtime, "first")
    forks = fork_server.pid()
    assert forks is not None
    os.kill(forks, signal.SIGSTOP)
    begun: list[str] = []

    def start(process: Any) -> None:
        begun.append(psutil.Process(forks).status())

    monkeypatch.setattr(runtime._context.Process, "start", start)
    runtime.start(local.ActorSpec("a", "a", 0, "", Any, tmp_path, "", "", "", 1))  # type: ignore[arg-type]
    assert begun and begun[0] != psutil.STATUS_STOPPED


@pytest.mark.parametrize("stopped", [False, True])
def test_the_fork_server_ends_with_the_launch(runtime: LocalRuntime, stopped: bool) -> None:
    pid, forks = sleeper(runtime, "actor"), fork_server.pid()
    assert forks is not None
    if stopped:
        os.kill(forks, signal.SIGSTOP)
    runtime.end()
    runtime.close()
    assert not psutil.pid_exists(forks) and not psutil.pid_exists(pid)
    runtime.close()
    sleeper(runtime, "of another launch in this process")
    assert fork_server.pid() != forks
