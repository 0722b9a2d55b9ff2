"""One connection to a run's bus: publish and follow topics, heartbeats, addresses, the versions of the engines.

Promises: every key of a run begins with one prefix, so that runs can share a Redis; messages are typed on both ends; a
connection that cannot be made is one clear line within its deadline.

Topics (streams): ``tickets`` dealer to rollout workers (consumer group); ``samples`` workers to learner; ``batches`` the
learner's write-ahead log; ``weights`` learner, engines and broadcaster; ``control`` supervisor to all; ``events`` and
``metrics`` all to the monitor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Literal, TypeVar

import msgspec
import redis.asyncio as aioredis
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from bus.codec import decode, encode
from bus.errors import NoRedisError
from bus.messages import Heartbeat, Message

M = TypeVar("M", bound=Message)
Topic = Literal["tickets", "samples", "batches", "weights", "control", "events", "metrics", "dead"]

READ_BLOCK_MS = 500  # how long a blocking read lasts before it looks at its stop event


class EngineState(msgspec.Struct, array_like=True, frozen=True):
    """A line of the ledger of versions: what one engine serves."""

    url: str
    incarnation: int
    version: int
    state: Literal["starting", "serving", "updating", "down"]


class Bus:
    """The bus of one run. Make it with :func:`connect`."""

    def __init__(self, client: aioredis.Redis, run_id: str) -> None:
        self.redis: Any = client
        self.run_id = run_id
        self.prefix = f"miles:{{{run_id}}}:"

    def key(self, name: str) -> str:
        return self.prefix + name

    async def close(self) -> None:
        await self.redis.aclose()

    # topics

    async def publish(self, topic: Topic, message: Message) -> None:
        """Append ``message`` to the stream of ``topic``."""
        await self.redis.xadd(self.key(topic), {"m": encode(message)})

    async def read(
        self, topic: Topic, kind: type[M] | tuple[type[M], ...], last_id: str, *, block_ms: int = 0, count: int = 512
    ) -> tuple[list[M], str]:
        """Messages of ``topic`` after ``last_id`` ("0" for all) and the id to go on from. Waits up to ``block_ms``."""
        answer = await self.redis.xread({self.key(topic): last_id}, count=count, block=block_ms or None)
        if not answer:
            return [], last_id
        entries = answer[0][1]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        messages: list[M] = []
        for _, fields in entries:
            message: Any = decode(fields[b"m"], Message)
            if isinstance(message, kinds):
                messages.append(message)
        return messages, entries[-1][0].decode()

    async def last_id(self, topic: Topic) -> str:
        """The id of the newest entry of ``topic``, "0" if there is none."""
        newest = await self.redis.xrevrange(self.key(topic), count=1)
        return newest[0][0].decode() if newest else "0"

    async def follow(
        self,
        topic: Topic,
        kind: type[M] | tuple[type[M], ...],
        *,
        stop: asyncio.Event,
        from_start: bool = True,
    ) -> AsyncIterator[M]:
        """Every message of ``topic`` of type ``kind``, in order, until ``stop`` is set."""
        last = "0" if from_start else await self.last_id(topic)
        while not stop.is_set():
            messages, last = await self.read(topic, kind, last, block_ms=READ_BLOCK_MS)
            for message in messages:
                yield message

    async def wait_for_news(self, cursors: dict[Topic, str], *, block_ms: int = READ_BLOCK_MS) -> bool:
        """Wait until one of the topics has an entry after its cursor; moves the cursors. False: nothing came in time."""
        names: dict[bytes, Topic] = {self.key(topic).encode(): topic for topic in cursors}
        answer = await self.redis.xread({self.key(t): last for t, last in cursors.items()}, block=block_ms)
        for name, entries in answer or []:
            cursors[names[name]] = entries[-1][0].decode()
        return bool(answer)

    async def trim(self, topic: Literal["events", "metrics"], read_id: str) -> None:
        """Forget the entries up to ``read_id``: only of the monitor's topics, which no one else reads."""
        when, _, sequence = read_id.partition("-")
        await self.redis.xtrim(self.key(topic), minid=f"{when}-{int(sequence) + 1}", approximate=False)

    # who is alive, where, with which weights

    async def beat(self, heartbeat: Heartbeat) -> None:
        await self.redis.hset(self.key("heartbeats"), heartbeat.actor, encode(heartbeat))

    async def heartbeats(self) -> list[Heartbeat]:
        return [decode(value, Heartbeat) for value in (await self.redis.hgetall(self.key("heartbeats"))).values()]

    async def set_address(self, name: str, url: str) -> None:
        await self.redis.hset(self.key("addresses"), name, url)

    async def address(self, name: str, *, deadline_s: float) -> str:
        """The URL that ``name`` has published. Raises TimeoutError naming it."""
        end = time.monotonic() + deadline_s
        while (url := await self.redis.hget(self.key("addresses"), name)) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"waited {deadline_s:.0f} s for the address of {name}")
            await asyncio.sleep(0.02)  # a hash has no blocking read
        return url.decode()

    async def set_engine(self, engine: str, url: str, incarnation: int, version: int, state: str) -> None:
        line = EngineState(url, incarnation, version, state)  # type: ignore[arg-type]
        await self.redis.hset(self.key("engines"), engine, msgspec.msgpack.encode(line))

    async def engines(self) -> dict[str, EngineState]:
        table = await self.redis.hgetall(self.key("engines"))
        return {name.decode(): msgspec.msgpack.decode(line, type=EngineState) for name, line in table.items()}

    async def forget_processes(self) -> None:
        """At the start of a launch, when no process of the run lives: what they said of themselves and each other is void.

        The snapshots on ``weights``, too: they are of weights that a learner which resumes from an earlier checkpoint never
        had, and their versions would be numbers given twice.
        """
        void = ("addresses", "engines", "heartbeats", "control", "weights")
        await self.redis.delete(*(self.key(name) for name in void))


async def connect(url: str, run_id: str, *, deadline_s: float = 10.0) -> Bus:
    """Connect to the bus at ``url`` (redis://, rediss:// or unix://). Raises NoRedisError naming the URL and the cause."""
    try:
        client = aioredis.Redis.from_url(
            url,
            protocol=2,
            socket_connect_timeout=deadline_s,
            # a server that is being restarted is back within these (about 20 s); every command of ours may be repeated
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.01), 45),
            retry_on_error=[
                redis.exceptions.ConnectionError,
                redis.exceptions.TimeoutError,
                redis.exceptions.BusyLoadingError,
            ],
        )
    except ValueError as error:
        raise NoRedisError(f"bus.url = {url!r}: {error}") from None
    try:
        async with asyncio.timeout(deadline_s):
            await client.ping()
            info: Any = await client.info("server")
    except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
        await client.aclose()
        raise NoRedisError(f"no Redis answers at {url}: {error or type(error).__name__}") from None
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        await client.aclose()
        raise NoRedisError(f"Redis {version} at {url} is too old: 6.2 or newer is needed")
    return Bus(client, run_id)
