"""What Redis has answered outlives it also where the disk is slow, and reaches the disk every second."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from bus import Bus, connect
from bus.messages import Event
from bus.server import RedisServer

DEADLINE_S = 30.0
# what a disk that has much to do is to a program
SLOW = """
#include <time.h>
static int slow(void) { struct timespec t = {3, 0}; nanosleep(&t, 0); return 0; }
int fdatasync(int file) { (void)file; return slow(); }
int fsync(int file) { (void)file; return slow(); }
"""


def syncing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "append-only file"]


async def say(bus: Bus, number: int) -> None:
    await bus.publish("events", Event(actor="a", kind="k", time=float(number)))


@pytest.fixture
def slow_disk(tmp_path: Path) -> Path:
    """A library for LD_PRELOAD."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: the disk cannot be made slow")
    (tmp_path / "slow.c").write_text(SLOW)
    library = tmp_path / "slow.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "slow.c"], check=True)
    return library


async def test_what_was_answered_while_the_disk_was_busy_survives_a_killed_server(
    slow_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = RedisServer(tmp_path / "redis")
    with monkeypatch.context() as slowly:
        slowly.setenv("LD_PRELOAD", str(slow_disk))
        bus = await connect(server.start(), "r")
    begin, now, said = (await bus.redis.time())[0], 0, 0
    while now < begin + 2:  # it syncs when its clock has reached another second, if it does
        await say(bus, said)
        said, now = said + 1, (await bus.redis.time())[0]
    await bus.close()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    again = RedisServer(tmp_path / "redis")
    bus = await connect(again.start(), "r")
    events, _ = await bus.read("events", Event, "0", count=said + 1)
    await bus.close()
    again.stop()
    assert [event.time for event in events] == [float(number) for number in range(said)]


@pytest.mark.parametrize("appendfsync", ["everysec", "always", "no"])
async def test_what_was_answered_reaches_the_disk_every_second_if_that_is_asked_for(
    appendfsync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = threading.Event(), os.fdatasync

    def fdatasync(number: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{number}")).is_relative_to(tmp_path):
            synced.set()
        sync(number)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    others = set(syncing())  # of servers that other tests share
    server = RedisServer(tmp_path, appendfsync)
    bus = await connect(server.start(), "r")
    try:
        await say(bus, 1)
        assert (await bus.redis.config_get("appendfsync"))["appendfsync"] == (
            "no" if appendfsync == "everysec" else appendfsync
        )
        if appendfsync == "everysec":
            assert synced.wait(DEADLINE_S), "the append-only file was not synced"
        else:
            assert set(syncing()) == others  # nobody else does
    finally:
        await bus.close()
        server.stop()
    for thread in set(syncing()) - others:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the thread that syncs has not ended"
