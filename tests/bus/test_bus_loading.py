"""A Redis that reads its append-only file back: waited for while it makes progress, which is shown; and one with a damaged
file. The load is real, slowed down by Redis' own ``key-load-delay``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from bus import NoRedisError, connect, dial
from bus import server as bus_server
from bus.append_only import appended_to, put_zeros_back
from bus.loading import STILL_S, Loading, LoadWatch
from bus.patience import patient
from bus.server import RedisServer
from miles_async.monitor.status import show, status
from miles_async.runs import state
from miles_async.runs.lock import RunLock

FEW, COMMANDS = 10, 16_000  # Redis answers after each thousand
RUN = "loads"


def write(directory: Path, commands: int) -> Path:
    """Let a server write ``commands`` into ``directory``, and end."""
    server = RedisServer(directory)
    client = redis.Redis.from_url(server.start(), protocol=2)
    pipe = client.pipeline(transaction=False)
    for _ in range(commands):
        pipe.rpush("list", "x" * 50)
    pipe.execute()
    client.close()
    server.stop()
    return directory


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write(tmp_path / "redis", FEW)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A server whose load takes a second or two."""
    monkeypatch.setattr(bus_server, "LONG_S", 0.0)
    server = RedisServer(write(tmp_path / "redis", COMMANDS), flags={"key-load-delay": "40"})
    yield server
    server.stop()


async def test_a_load_longer_than_the_deadline_is_waited_for_and_shown_by_server_client_and_status(
    slow: RedisServer,
) -> None:
    run_dir = slow.directory.parent
    told: dict[str, list[str]] = {"server": [], "client": []}
    slow.spawn()
    lock = RunLock(run_dir)
    lock.take()
    state.write(run_dir, state.RunState(RUN, 1, os.getpid(), bus_url=slow.url, redis_pid=slow.pid))
    up = asyncio.create_task(asyncio.to_thread(slow.wait_until_it_answers, 0.3, told["server"].append))
    connecting = asyncio.create_task(connect(slow.url, RUN, deadline_s=60.0, tell=told["client"].append))
    while not told["server"]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    shown = await asyncio.to_thread(status, run_dir)
    bus = await connecting
    await up
    assert await bus.redis.llen("list") == COMMANDS
    await bus.close()
    lock.release()
    for said in (*told["server"], *told["client"], shown["diagnosis"]):
        assert said.startswith("redis loads its append-only file: ") and "MB" in said
    assert told["client"]
    assert "culprit  redis loads its append-only file" in show(shown, time.time())


async def test_a_command_waits_for_a_redis_that_restarts_and_loads_and_says_how_far_it_is(slow: RedisServer) -> None:
    slow.start()
    client = patient(slow.url, connect_timeout_s=5.0, retries=20)
    seen: list[Loading | None] = []
    client.tell = lambda text: seen.append(client.loading)
    assert slow.pid is not None
    os.kill(slow.pid, signal.SIGKILL)
    slow.wait()
    slow.spawn()
    assert await client.llen("list") == COMMANDS
    assert seen[0] is not None and seen[0].total > 0 and client.loading is None
    await client.aclose()
    slow.wait_until_it_answers()


async def test_the_deadline_of_a_connection_does_not_count_while_redis_loads() -> None:
    class Client:
        loading: Loading | None = Loading(1, 2)

        async def echo(self, text: str) -> None:
            await asyncio.Event().wait()

    client: Any = Client()
    asking = asyncio.create_task(dial._ask(client, 0.05))
    done, _ = await asyncio.wait({asking}, timeout=0.5)
    assert not done
    client.loading = None
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        await asking


def test_a_load_that_stands_still_is_an_error_that_says_where() -> None:
    now = 0.0
    load = LoadWatch(clock=lambda: now)
    for loaded in range(10):
        now = loaded * (STILL_S - 1)
        load.saw(Loading(loaded * 10, 200))
    now += STILL_S
    with pytest.raises(NoRedisError, match=r"45 % of .*, but it has read nothing for 60 s"):
        load.saw(Loading(90, 200))


@pytest.mark.parametrize("torn", [0, 20], ids=["after a command", "in a command"])
async def test_zeros_that_a_power_cut_left_are_cut_off_and_said(written: Path, torn: int) -> None:
    file = appended_to(written)
    assert file is not None
    os.truncate(file, file.stat().st_size - torn)
    put_zeros_back(file, 5000)
    told: list[str] = []
    server = RedisServer(written)
    bus = await connect(server.start(tell=told.append), RUN)
    assert await bus.redis.llen("list") == FEW - bool(torn)
    await bus.close()
    server.stop()
    assert told == [f"redis: {file} ended in 5000 zero bytes, as a power cut leaves them; they were cut off"]


def test_an_append_only_file_that_is_damaged_is_left_as_it_is_and_the_message_says_what_mends_it(written: Path) -> None:
    file = appended_to(written)
    assert file is not None
    with file.open("r+b") as damaged:
        damaged.seek(file.stat().st_size // 2)
        damaged.write(b"\0" * 50)
    put_zeros_back(file, 100)
    before = file.read_bytes()
    server = RedisServer(written)
    with pytest.raises(NoRedisError, match="it is damaged") as caught:
        server.start()
    assert file.read_bytes() == before and str(file) in str(caught.value)
    command = str(caught.value).partition("`")[2].partition("`")[0]
    subprocess.run(command, shell=True, input=b"y\n", capture_output=True, check=True)
    again = RedisServer(written)
    again.start()
    again.stop()
    server.stop()
