"""The fork server of a launch: a signal to the whole group does not end it; stopped, it holds nobody up; and none is left when
the launch is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.runtime.placement import fork_server, local
from actors.runtime.placement.local import LocalPlacement
from actors.runtime.spec import ActorId, ActorSpec
from miles_async.monitor.diagnosis import Process
from miles_async.monitor.sight import process_of

DEADLINE_S = 10.0


@pytest.fixture
def placement(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose actors sleep, and whose fork server has nothing to import."""
    server = fork_server.ForkServer("time")
    monkeypatch.setattr(fork_server, "OTHERS", server)
    monkeypatch.setattr(fork_server, "BOTH", {"the fork server": server})
    placement = LocalPlacement()
    yield placement
    placement.close()


def sleeper(placement: LocalPlacement, name: str) -> int:
    placement._processes[ActorId(name, 1)] = process = placement._context.Process(
        target=time.sleep, args=(1000,), name=name
    )
    fork_server.OTHERS.fork(process)
    assert process.pid is not None
    return process.pid


def test_a_stopped_fork_server_does_not_hold_up_the_end_of_a_run(placement: LocalPlacement) -> None:
    sleeper(placement, "actor")
    os.kill(sleeper(placement, "stopped too"), signal.SIGSTOP)
    forks = fork_server.OTHERS.pid()
    assert forks is not None
    os.kill(forks, signal.SIGSTOP)
    placement.end()
    assert [process.exitcode for process in placement._processes.values()] == [-signal.SIGKILL, -signal.SIGKILL]


def test_whose_end_is_its_own_is_said_to_the_fork_server_alone(
    placement: LocalPlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    sleeper(placement, "actor")
    told = psutil.Process(fork_server.OTHERS.pid()).environ()
    assert (told[fork_server.LAUNCH_PID], told["OMP_NUM_THREADS"]) == (str(os.getpid()), "1")
    assert dict(os.environ) == before
    placement.end()


def test_an_actor_that_ended_with_the_fork_server_says_so(placement: LocalPlacement) -> None:
    actor, forks = sleeper(placement, "actor"), fork_server.OTHERS.pid()
    assert forks is not None
    os.kill(forks, signal.SIGKILL)
    (process,) = placement._processes.values()
    process.join(10.0)
    os.kill(actor, signal.SIGKILL)  # this one was not told to die with its parent
    assert process.exitcode is not None
    assert local.ending(process.exitcode).how == "the fork server ended, and it with that"
    assert local.ending(-9).how == "killed by signal 9" and local.ending(1).how == "exit code 1"


def test_an_actor_whose_end_the_fork_server_has_still_to_tell_can_be_terminated(
    placement: LocalPlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = sleeper(placement, "actor")
    ((name, process),) = placement._processes.items()
    with monkeypatch.context() as untold:
        untold.setattr(process._popen, "poll", lambda *_: None)
        os.kill(actor, signal.SIGKILL)
        until = time.monotonic() + DEADLINE_S
        while psutil.pid_exists(actor):  # the fork server has reaped it
            assert time.monotonic() < until, f"process {actor} is still there"
            time.sleep(0.01)
        placement.terminate(name)
        placement.terminate(name, by_force=True)
    placement.end()
    assert process.exitcode == -signal.SIGKILL


def test_a_stopped_fork_server_is_seen_where_it_hides_that_an_actor_has_ended(placement: LocalPlacement) -> None:
    ended, forks = sleeper(placement, "ended"), fork_server.OTHERS.pid()
    lives = sleeper(placement, "lives")
    assert forks is not None
    seen = placement.look()
    assert {name: process.where for name, process in seen.items()} == {"ended": f"pid {ended}", "lives": f"pid {lives}"}
    assert "zombie" not in {process.state for process in seen.values()}
    os.kill(forks, signal.SIGSTOP)
    os.kill(ended, signal.SIGKILL)
    until = time.monotonic() + DEADLINE_S
    while process_of(ended).state != "zombie":
        assert time.monotonic() < until, f"the killed process {ended} has not ended"
        time.sleep(0.01)
    seen = placement.look()
    assert seen["ended"] == Process(f"pid {ended}", "zombie") and seen["lives"].state != "zombie"
    assert seen["the fork server"] == Process(f"pid {forks}", "stopped")


def test_a_fork_server_that_was_stopped_starts_who_is_to_start(
    placement: LocalPlacement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper(placement, "first")
    forks = fork_server.OTHERS.pid()
    assert forks is not None
    os.kill(forks, signal.SIGSTOP)
    begun: list[str] = []

    def start(process: Any) -> None:
        begun.append(psutil.Process(forks).status())

    monkeypatch.setattr(placement._context.Process, "start", start)
    placement.start(ActorSpec("a", "a", 0, "", Any, tmp_path, "", "", "", 1))  # type: ignore[arg-type]
    assert begun and begun[0] != psutil.STATUS_STOPPED


@pytest.mark.parametrize("stopped", [False, True])
def test_the_fork_server_ends_with_the_launch(placement: LocalPlacement, stopped: bool) -> None:
    pid, forks = sleeper(placement, "actor"), fork_server.OTHERS.pid()
    assert forks is not None
    if stopped:
        os.kill(forks, signal.SIGSTOP)
    placement.end()
    placement.close()
    assert not psutil.pid_exists(forks) and not psutil.pid_exists(pid)
    placement.close()
    sleeper(placement, "of another launch in this process")
    assert fork_server.OTHERS.pid() != forks


# the module that a fork server imports ends it, so many times
ENDS = """
import os, pathlib
here = pathlib.Path(__file__).parent
if len(list(here.glob("ended-*"))) < {times}:
    (here / f"ended-{{os.getpid()}}").touch()
    os._exit(7)
"""


@pytest.fixture
def ending_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One that ends ``times`` times while it imports."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(tmp_path)
    server = fork_server.ForkServer("preloaded_by_this_test")

    def ending(times: int) -> fork_server.ForkServer:
        (tmp_path / "preloaded_by_this_test.py").write_text(ENDS.format(times=times))
        return server

    yield ending
    server.end()


def test_a_fork_server_that_ends_while_it_is_to_start_an_actor_is_followed_by_another(
    placement: LocalPlacement, tmp_path: Path, ending_server: Any
) -> None:
    process = placement._context.Process(target=os._exit, args=(3,), name="learner-0")
    ending_server(1).fork(process)
    process.join(DEADLINE_S)
    assert process.exitcode == 3 and len(list(tmp_path.glob("ended-*"))) == 1


def test_the_actors_of_a_fork_server_live_on_where_a_newborn_ends_before_it_is_told_what_to_do(
    placement: LocalPlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour, forks = sleeper(placement, "neighbour"), fork_server.OTHERS.pid()
    attempts: list[str] = []
    start = fork_server.ForkServer._fork

    def fork(server: fork_server.ForkServer, process: Any) -> None:
        attempts.append(process.name)
        if len(attempts) == 1:
            raise EOFError("unexpected EOF")  # what the pipe of a process that was killed says
        start(server, process)

    monkeypatch.setattr(fork_server.ForkServer, "_fork", fork)
    monkeypatch.setattr(fork_server, "ENDS_S", 0.1)
    sleeper(placement, "newborn")
    assert attempts == ["newborn", "newborn"] and fork_server.OTHERS.pid() == forks
    assert psutil.pid_exists(neighbour)


def test_a_fork_server_that_ends_again_fails_the_start_by_name(
    placement: LocalPlacement, tmp_path: Path, ending_server: Any
) -> None:
    process = placement._context.Process(target=os._exit, args=(3,), name="learner-0")
    with pytest.raises(RuntimeError, match="import preloaded_by_this_test failed twice to start learner-0"):
        ending_server(1000).fork(process)
    assert len(list(tmp_path.glob("ended-*"))) == 2


# what is imported once says that it has begun to be, and takes its time
PRELOADED = """
import pathlib, time
pathlib.Path({begun!r}).touch()
time.sleep(1.0)
"""
LAUNCH = """
import os, signal, sys, time
from pathlib import Path
from actors.runtime.placement import fork_server, local

signum, begun = int(sys.argv[1]), Path(sys.argv[2])
heard = []
signal.signal(signum, lambda *_: heard.append(signum))
server = fork_server.ForkServer("preloaded")
fork_server.BOTH = {"the fork server": server}
placement = local.LocalPlacement()
placement.warm_up()
if sys.argv[3] == "imports":
    while not begun.exists():
        time.sleep(0.01)
os.killpg(0, signum)
actor = placement._context.Process(target=time.sleep, args=(1000,))
server.fork(actor)
os.killpg(0, signum)
os.kill(actor.pid, signal.SIGKILL)
actor.join()
print(len(heard), actor.exitcode)
placement.close()
"""


@pytest.mark.parametrize("moment", ["begins", "imports"])
@pytest.mark.parametrize("signum", fork_server.OF_THE_GROUP)
def test_a_signal_to_the_whole_group_does_not_end_the_fork_server_while_it_starts(
    signum: signal.Signals, moment: str, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "preloaded.py").write_text(PRELOADED.format(begun=str(begun)))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    launch = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(int(signum)), str(begun), moment],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=False,
    )
    assert launch.stdout.split() == ["2", str(-signal.SIGKILL)], launch.stderr  # 255: the fork server has ended


def _signals_of_an_actor() -> None:
    fork_server.become_an_actor()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ignored = {signum for signum in fork_server.OF_THE_GROUP if signal.getsignal(signum) is signal.SIG_IGN}
    os._exit(0 if not blocked and ignored == {signal.SIGINT, signal.SIGHUP} else 1)


def test_an_actor_hears_of_the_signals_of_its_group_sigterm_only(placement: LocalPlacement) -> None:
    process = placement._context.Process(target=_signals_of_an_actor)
    fork_server.OTHERS.fork(process)
    process.join(30.0)
    assert process.exitcode == 0
