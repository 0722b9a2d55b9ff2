"""The connection that all commands share: each has its own answer, whatever happens to the others."""

from __future__ import annotations

import asyncio
import contextlib
import time

import redis.exceptions

from bus import Bus

LONG_S = 20.0


async def blocked_clients(bus: Bus) -> int:
    return int((await bus.redis.info("clients"))["blocked_clients"])


async def until_blocked(bus: Bus, count: int) -> None:
    until = time.monotonic() + LONG_S
    while (blocked := await blocked_clients(bus)) != count:  # Redis tells nobody
        assert time.monotonic() < until, f"{blocked} clients wait in Redis, not {count}"
        await asyncio.sleep(0.01)


async def test_commands_of_many_tasks_reach_redis_in_order_and_each_gets_its_answer(bus: Bus) -> None:
    key = bus.key("list")
    lengths = await asyncio.gather(*(bus.redis.rpush(key, i) for i in range(500)))
    assert lengths == list(range(1, 501))
    assert await bus.redis.lrange(key, 0, -1) == [b"%d" % i for i in range(500)]


async def test_a_refused_command_is_an_error_of_its_own_task_alone(bus: Bus) -> None:
    key = bus.key("text")
    found = await asyncio.gather(
        bus.redis.set(key, "x"), bus.redis.hget(key, "f"), bus.redis.get(key), return_exceptions=True
    )
    assert (found[0], found[2]) == (True, b"x")
    assert isinstance(found[1], redis.exceptions.ResponseError)


async def test_a_cancelled_command_takes_no_other_ones_answer(bus: Bus) -> None:
    await bus.redis.set(bus.key("a"), "1")
    await bus.redis.set(bus.key("b"), "2")
    first = asyncio.create_task(bus.redis.get(bus.key("a")))
    second = asyncio.create_task(bus.redis.get(bus.key("b")))
    await asyncio.sleep(0)  # both are asked
    first.cancel()
    assert await second == b"2"
    assert await bus.redis.get(bus.key("a")) == b"1"


async def test_a_command_that_blocks_holds_up_no_other_one_and_ends_in_redis_when_it_is_cancelled(bus: Bus) -> None:
    waiting = [asyncio.create_task(bus.redis.xread({bus.key("s"): "0"}, block=60_000)) for _ in range(2)]
    await until_blocked(bus, 2)
    assert await bus.redis.echo("x") == b"x"
    waiting[0].cancel()
    await until_blocked(bus, 1)
    await bus.redis.xadd(bus.key("s"), {"m": "1"})
    ((_, entries),) = await waiting[1]
    assert [fields for _, fields in entries] == [{b"m": b"1"}]


async def test_commands_on_a_connection_that_breaks_are_asked_again(bus: Bus) -> None:
    waiting = asyncio.create_task(bus.redis.xread({bus.key("s"): "0"}, block=60_000))
    await until_blocked(bus, 1)
    commands = [asyncio.create_task(bus.redis.set(bus.key(f"k{i}"), i)) for i in range(20)]
    with contextlib.suppress(redis.exceptions.ConnectionError):
        await bus.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
    assert await asyncio.gather(*commands) == [True] * 20
    await bus.redis.xadd(bus.key("s"), {"m": "1"})
    assert await waiting


async def test_what_is_sent_ahead_is_there_before_the_next_command(bus: Bus) -> None:
    await bus.redis.ping()  # without a connection it is lost, which whoever uses it has to reckon with
    bus.redis.ahead("SET", bus.key("a"), "1")
    assert await bus.redis.get(bus.key("a")) == b"1"


async def test_an_answer_that_nobody_asked_for_ends_the_connection_and_is_no_ones_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                asked = data.count(b"ECHO")
                writer.write(b"+OK\r\n" * (data.count(b"*") - asked) + b"$1\r\nx\r\n$1\r\ny\r\n" * asked)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    from bus.patience import patient

    client = patient(f"redis://127.0.0.1:{port}", connect_timeout_s=LONG_S)
    assert [await client.echo("x") for _ in range(3)] == [b"x"] * 3
    await client.aclose()
    server.close()
