"""A group that an engine is to join is waited for as long as its sender's attempt lasts; what comes of it later is left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from miles_async.engines.embedded import joins
from miles_async.engines.embedded.control_bodies import InitGroupBody
from miles_async.engines.embedded.groups import TransferError
from miles_async.engines.embedded.joins import MOST, Joins

DEADLINE_S = 45.0


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port of this machine at which nobody listens; in the end somebody does, so that no thread looks for it any more."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]
        reserved.listen()
        reserved.settimeout(0.1)
        until = time.monotonic() + DEADLINE_S
        while any(thread.name == "collective" for thread in threading.enumerate()) and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                reserved.accept()[0].close()


def body(name: str, port: int) -> InitGroupBody:
    return InitGroupBody("127.0.0.1", port, rank_offset=1, world_size=2, group_name=name, backend="gloo")


async def begun(waiting: Joins, name: str, port: int) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(waiting.join(body(name, port)))
    await asyncio.sleep(0)
    return task


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_join_that_is_given_up_ends_at_once_and_its_thread_looks_for_nobody_any_more(nobody: int) -> None:
    waiting = Joins()
    join = await begun(waiting, "one", nobody)
    assert not waiting.end("another", "why") and not join.done()
    assert waiting.end("one", "the sender gave it up")
    with pytest.raises(TransferError, match=r"^the sender gave it up while group one was waited for$"):
        await join
    assert not waiting.end("one", "again")
    await until(lambda: not waiting._threads)


@pytest.mark.parametrize("name", ["two", "one"])
async def test_the_next_attempt_ends_the_one_before_and_has_its_own_end(nobody: int, name: str) -> None:
    waiting = Joins()
    first, second = await begun(waiting, "one", nobody), await begun(waiting, name, nobody)
    with pytest.raises(TransferError, match=r"^another group is formed while group one was waited for$"):
        async with asyncio.timeout(DEADLINE_S):
            await first
    assert not second.done()
    second.cancel()  # as where the sender does not wait for the answer any more
    with pytest.raises(asyncio.CancelledError):
        await second
    await until(lambda: not waiting._threads)
    assert not waiting.end(name, "again")


async def test_no_more_groups_are_joined_than_there_may_be_threads_and_one_that_comes_late_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of groups whose ranks meet when the test says so."""
    meet, left, met = threading.Event(), list[object](), object()

    def join_group(*_: Any, **__: Any) -> object:
        meet.wait(DEADLINE_S)
        return met

    monkeypatch.setattr(joins, "join_group", join_group)
    monkeypatch.setattr(joins, "leave_group", left.append)
    waiting = Joins()
    tasks = [await begun(waiting, f"group {number}", 1) for number in range(MOST)]
    with pytest.raises(TransferError, match=f"{MOST} groups that were given up are being joined still"):
        await waiting.join(body("one more", 1))
    meet.set()
    await until(lambda: len(left) == MOST)  # the last one was given up for the one that was refused
    assert left == [met] * MOST and not waiting._threads
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, TransferError) for one in found)
    assert await waiting.join(body("one more", 1)) is met
    assert len(left) == MOST
