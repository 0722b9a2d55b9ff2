"""A launch that Ray keeps: started again where it was killed, by itself or with its keeper, and ended with its own code."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_actors import SEEN_S, configured, is_gone

from actors.runtime.logs import log_path
from actors.runtime.placement.on_ray import keeper, kept
from actors.runtime.placement.on_ray.cluster import Cluster
from benchmarks.lib.ray_machines import ROOT, RayMachines, left_in_ray, ray_machines
from miles_async.runs.lock import RunLock

# each life leaves its number and its process; the second one ends when it is told to, with a code of its own
LIVES = """
import os, pathlib, signal, sys, threading
told = threading.Event()
signal.signal(signal.SIGINT, lambda *_: told.set())
lives = pathlib.Path(sys.argv[1])
number = len(list(lives.glob("life-*")))
print("life", number, os.environ["MILES_ASYNC_KEPT"], flush=True)
(lives / f"new-{number}").write_text(f"{os.getpid()} {os.getppid()}")
(lives / f"new-{number}").rename(lives / f"life-{number}")
while not told.wait(0.05):
    pass
sys.exit(7)
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[RayMachines]:
    with ray_machines(ROOT / "tests" / "support") as found:
        yield found


@contextlib.contextmanager
def kept_launch(
    machines: RayMachines, run_dir: Path, restarts: int, held_s: float = keeper.HELD_S
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The keeper of a launch that is followed meanwhile, and what was heard of it: ``out`` and, in the end, ``code``."""
    config = configured(f"placement.launch_restarts={restarts}")
    run_dir.mkdir()
    cluster = Cluster(config.placement, "kept")
    cluster.attach([])
    handle = kept.begin(cluster, config, run_dir, [sys.executable, "-c", LIVES, str(run_dir)], held_s)
    assert kept.is_kept(cluster)
    out, heard = io.StringIO(), dict[str, Any]()

    def follow() -> None:
        heard["code"] = kept.follow(handle, log_path(run_dir, keeper.NAME), 0, out)
        heard["out"] = out.getvalue()

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        yield handle, heard
    finally:
        follower.join(SEEN_S)
        assert not follower.is_alive() and left_in_ray(machines.address, "kept") == []


def life(run_dir: Path, number: int) -> tuple[int, int]:
    """The process of that life, and of its keeper."""
    until = time.monotonic() + SEEN_S
    while not (found := run_dir / f"life-{number}").exists():
        assert time.monotonic() < until, f"no life {number}"
        time.sleep(0.02)
    pid, parent = found.read_text().split()
    return int(pid), int(parent)


def test_a_launch_that_is_killed_is_started_again_and_ends_with_its_own_code(
    machines: RayMachines, tmp_path: Path
) -> None:
    with kept_launch(machines, tmp_path / "run", restarts=2) as (handle, heard):
        os.kill(life(tmp_path / "run", 0)[0], signal.SIGKILL)
        pid, parent = life(tmp_path / "run", 1)
        before = psutil.Process(pid)
        os.kill(parent, signal.SIGKILL)  # as a machine that is lost
        life(tmp_path / "run", 2)
        until = (
            time.monotonic() + SEEN_S
        )  # it is told by the kernel that its keeper has died, beside the next life's start
        while not is_gone(before):
            assert time.monotonic() < until, f"the launch of a dead keeper lives: {pid}"
            time.sleep(0.02)
        handle.signal.remote(signal.SIGINT)
    assert heard["code"] == 7
    said = ["life 0 1", "miles-async: the launch was killed by signal 9", "life 1 1", "life 2 1"]
    assert heard["out"].splitlines() == said


def test_a_launch_that_is_started_again_waits_for_its_directory_and_names_who_holds_that_for_too_long(
    machines: RayMachines, tmp_path: Path
) -> None:
    with kept_launch(machines, tmp_path / "run", restarts=1, held_s=1.0) as (handle, heard):
        lock = RunLock(tmp_path / "run")
        lock.take()
        os.kill(life(tmp_path / "run", 0)[0], signal.SIGKILL)
        life(tmp_path / "run", 1)
        handle.signal.remote(signal.SIGINT)
    lock.release()
    who = f"miles-async: {tmp_path / 'run'} is in use by a launch that is alive (pid {os.getpid()}), also after 1 s"
    assert heard["out"].splitlines()[2:] == [who, "life 1 1"]


def test_a_directory_that_is_left_meanwhile_is_waited_for_no_longer(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.take()
    assert str(os.getpid()) in keeper.until_free(tmp_path, 0.0)
    leaves = threading.Timer(0.3, lock.release)
    leaves.start()
    assert keeper.until_free(tmp_path, SEEN_S) == ""
    leaves.join()
    assert keeper.until_free(tmp_path / "none", 0.0) == ""


def test_a_launch_that_dies_too_often_is_lost_in_one_line(
    machines: RayMachines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with kept_launch(machines, tmp_path / "run", restarts=0) as (_, heard):
        os.kill(life(tmp_path / "run", 0)[0], signal.SIGKILL)
    assert heard["code"] == kept.GIVEN_UP
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("miles-async: the launch is lost, and Ray does not start it again: ")
