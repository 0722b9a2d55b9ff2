"""Whoever has been replaced, or has lost the bus, ends itself: processes on a real Redis, and the rules by hand."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from idling_actor import NAME, idling

from actors.runtime.lease import ANSWER_S, LOOK_S, LOST, QUIET_BEATS, REPLACED, Lease
from actors.runtime.placement.base import exit_words
from bus import Bus, connect
from bus.fence import BusAway, Life
from bus.lives import Lives
from bus.messages import Event
from bus.server import RedisServer

PATIENCE_S = 60.0


class Lost(Exception):
    """The process would have ended."""


class Hands:
    """A lease whose bus and clock are the test's. ``answer``: a successor, 0, or None where the bus is away."""

    def __init__(self, lease_s: float, heartbeat_s: float = 1.0) -> None:
        self.now, self.asked = 100.0, 0
        self.answer: int | None = 0
        self.life = Life("w", 1)
        self.lease = Lease(self, lease_s, heartbeat_s, clock=lambda: self.now, leave=self.left)  # type: ignore[arg-type]

    def successor(self) -> int:
        self.asked += 1
        if self.answer is None:
            raise BusAway("away")
        return self.answer

    def left(self, code: int) -> None:
        raise Lost(code)


async def _events(bus: Bus) -> list[Event]:
    found, _ = await bus.read("events", Event, "0", count=100_000)
    return found


async def _lives(bus: Bus, process: subprocess.Popen[str], more_than: int = 0) -> int:
    """Wait until it has said so more than so many times; returns how often."""
    async with asyncio.timeout(PATIENCE_S):
        while (said := len(await _events(bus))) <= more_than:
            assert process.poll() is None, process.communicate()
            await asyncio.sleep(0.02)
    return said


async def _ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, log = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
    return process.returncode, log


async def test_one_that_was_stopped_while_it_was_replaced_says_nothing_more_and_ends(bus: Bus, redis_url: str) -> None:
    with idling(redis_url, bus.run_id, 1) as old:
        await _lives(bus, old)
        os.kill(old.pid, signal.SIGSTOP)
        await Lives(bus).replace({NAME: 2})
        with idling(redis_url, bus.run_id, 2) as new:
            await _lives(bus, new, len(await _events(bus)) + 3)
            os.kill(old.pid, signal.SIGCONT)
            code, log = await _ended(old)
            await _lives(bus, new, len(await _events(bus)) + 3)
        assert code == REPLACED and f"{NAME}, incarnation 1, has been replaced: incarnation 2 lives" in log
        assert [beat.incarnation for beat in await bus.heartbeats()] == [2]


async def test_a_successor_that_nobody_has_announced_ends_the_earlier_life(bus: Bus, redis_url: str) -> None:
    with idling(redis_url, bus.run_id, 1) as old:
        await _lives(bus, old)
        with idling(redis_url, bus.run_id, 2):
            code, _ = await _ended(old)
    assert code == REPLACED


async def test_one_whose_event_loop_hangs_ends_when_it_is_replaced(bus: Bus, redis_url: str) -> None:
    with idling(redis_url, bus.run_id, 1, mode="hangs") as process:
        await _lives(bus, process)
        await Lives(bus).begin(2)
        code, log = await _ended(process)
    assert code == REPLACED and "has been replaced: incarnation 2 lives" in log


async def test_one_that_does_not_reach_the_bus_for_longer_than_its_lease_ends(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    url = server.start()
    short, long = await connect(url, "short"), await connect(url, "long")
    with idling(url, "short", 1, lease_s=2.0) as process, idling(url, "long", 1, lease_s=1000.0) as patient:
        await _lives(short, process)
        await _lives(long, patient)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            code, log = await _ended(process)
            assert code == LOST and "more than run.bus_lease_s = 2" in log
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await _lives(long, patient, len(await _events(long)) + 2)
    await short.close()
    await long.close()
    server.stop()


async def test_a_redis_that_is_started_again_within_the_lease_ends_nobody(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    url = server.start()
    bus = await connect(url, "again")
    with idling(url, "again", 1) as process:
        said = await _lives(bus, process, 2)
        server.kill()
        await asyncio.to_thread(server.wait)
        server.spawn()
        await asyncio.to_thread(server.wait_until_it_answers)
        await _lives(bus, process, said + 2)
    await bus.close()
    server.stop()


def test_while_heartbeats_reach_the_bus_nobody_asks_it() -> None:
    hands = Hands(300.0)
    for _ in range(100):
        hands.now += 1.0
        hands.lease.reached()
        hands.lease.tick()
    assert hands.asked == 0
    hands.now += QUIET_BEATS * LOOK_S
    hands.lease.tick()
    assert hands.asked == 1


def test_a_lease_is_over_when_the_bus_was_not_reached_for_so_long_and_not_before() -> None:
    hands = Hands(60.0)
    hands.answer = None
    hands.now += 60.0
    assert not hands.lease.look()
    hands.lease.reached()
    hands.now += 60.0
    assert not hands.lease.look()
    hands.now += 0.1
    with pytest.raises(Lost, match=str(LOST)):
        hands.lease.look()


def test_the_time_of_an_answer_is_that_of_its_question() -> None:
    hands = Hands(60.0)

    def slow() -> int:
        hands.now += 50.0
        return 0

    hands.successor = slow  # type: ignore[method-assign]
    assert hands.lease.look()
    hands.now += 11.0
    hands.successor = lambda: Hands.successor(hands)  # type: ignore[method-assign]
    hands.answer = None
    with pytest.raises(Lost):
        hands.lease.look()


def test_what_waits_for_the_word_of_the_bus_goes_on_with_it_and_not_without(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands(60.0)
    answers: list[Any] = [None, None, 0]
    monkeypatch.setattr("actors.runtime.lease.AGAIN_S", 0.0)
    hands.successor = lambda: _answer(answers.pop(0))  # type: ignore[method-assign]
    hands.lease.hold()
    assert not answers
    answers[:] = [None, 2]
    with pytest.raises(Lost, match=str(REPLACED)):
        hands.lease.hold()


def _answer(found: int | None) -> int:
    if found is None:
        raise BusAway("away")
    return found


def test_the_way_they_end_is_said_to_people() -> None:
    assert "replaced" in exit_words(REPLACED) and "run.bus_lease_s" in exit_words(LOST)
    assert QUIET_BEATS * LOOK_S < 300.0 / 2 and ANSWER_S < 300.0 / 4
