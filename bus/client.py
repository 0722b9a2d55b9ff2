"""One connection to a run's bus: publish and follow topics, heartbeats, addresses, the versions of the engines.

Promises: every key of a run begins with one prefix, so that runs can share a Redis; messages are typed on both ends; what
lies on a topic and is no message of this schema, or not of its topic, is refused: counted, logged, taken off the bus, and
never seen by an actor. So junk can neither stop an actor nor fill Redis.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

import msgspec
import redis.exceptions

from bus.codec import CodecError, decode, encode
from bus.fence import NOBODYS, FencedScript, Life
from bus.fields import Name, Number, Url, Version
from bus.messages import Heartbeat, Message
from bus.patience import PatientRedis, is_full
from bus.topics import KINDS, Topic

M = TypeVar("M", bound=Message)
READ_BLOCK_MS = 500  # how long a blocking read lasts before it looks at its stop event

_SCRIPTS = Path(__file__).parent / "scripts"
_URL = re.compile(str(get_args(Url)[1].pattern))
_log = logging.getLogger("bus")


class Entry(NamedTuple, Generic[M]):
    """A message and the id of its entry, which begins with the time in milliseconds since the epoch."""

    id: str
    message: M


class EngineState(msgspec.Struct, array_like=True, frozen=True):
    """A line of the ledger of versions (``bus/version_ledger.py``): what one engine serves."""

    url: Url
    incarnation: Number
    version: Version
    state: Literal["starting", "serving", "updating", "down"]
    epoch: Number = 0  # grows each time it starts or comes back


class Roster(msgspec.Struct, array_like=True, frozen=True):
    """The engines of a run; those ``leaving`` (or gone, by now) among them get no new work."""

    engines: frozenset[Name]
    leaving: frozenset[Name] = frozenset()


class Bus:
    """The bus of one run. Make it with :func:`bus.dial.connect`."""

    def __init__(self, client: PatientRedis, run_id: str) -> None:
        self.redis: Any = client
        self.run_id = run_id
        self.prefix = f"miles:{{{run_id}}}:"
        self.refused: Counter[str] = Counter()  # malformed entries, by topic
        self.read_only = False  # then what is refused stays where it is
        self.life: Life = NOBODYS  # of whose bus this is
        self.replaced: Callable[[str], object] = lambda why: None  # hears that it is over
        self._always = FencedScript(self, (_SCRIPTS / "always.lua").read_text())
        self._forget = FencedScript(self, (_SCRIPTS / "forget.lua").read_text())
        self._trim = FencedScript(self, "return redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[1])")
        self._fleet = self.redis.register_script((_SCRIPTS / "fleet.lua").read_text())
        self._memory = self.redis.register_script((_SCRIPTS / "memory.lua").read_text())

    def key(self, name: str) -> str:
        return self.prefix + name

    async def close(self) -> None:
        await self.redis.aclose()

    # topics

    async def publish(self, topic: Topic, message: Message) -> None:
        """Append ``message`` to the stream of ``topic``."""
        await self._always(keys=[self.key(topic)], args=["XADD", "*", "m", encode(message)])

    async def read(
        self, topic: Topic, kind: type[M] | tuple[type[M], ...], last_id: str, *, block_ms: int = 0, count: int = 512
    ) -> tuple[list[M], str]:
        """Messages of ``topic`` after ``last_id`` ("0" for all) and the id to go on from. Waits up to ``block_ms``."""
        entries, last_id = await self.read_entries(topic, kind, last_id, block_ms=block_ms, count=count)
        return [entry.message for entry in entries], last_id

    async def read_entries(
        self, topic: Topic, kind: type[M] | tuple[type[M], ...], last_id: str, *, block_ms: int = 0, count: int = 512
    ) -> tuple[list[Entry[M]], str]:
        """Like :meth:`read`, with the id of each entry."""
        answer = await self.redis.xread({self.key(topic): last_id}, count=count, block=block_ms or None)
        if not answer:
            return [], last_id
        kinds = kind if isinstance(kind, tuple) else (kind,)
        found: list[Entry[M]] = []
        junk: list[bytes] = []
        for entry_id, fields in answer[0][1]:
            message: Any = self.decode(topic, entry_id, fields, Message)
            if isinstance(message, kinds):
                found.append(Entry(entry_id.decode(), message))
            elif message is None:
                junk.append(entry_id)
            elif not isinstance(message, KINDS[topic]):
                self.refuse(topic, entry_id, CodecError(f"a {type(message).__name__} is not for this topic"))
                junk.append(entry_id)
        await self.remove(topic, junk)
        return found, answer[0][1][-1][0].decode()

    def decode(self, topic: str, entry_id: bytes | str, fields: Mapping[bytes, bytes], kind: type[M]) -> M | None:
        """The message in a stream's entry. None: it holds none of ``kind``, which is counted and logged."""
        try:
            if b"m" not in fields:
                raise CodecError("it has no field m")
            return decode(fields[b"m"], kind)
        except CodecError as error:
            self.refuse(topic, entry_id, error)
            return None

    def refuse(self, topic: str, what: bytes | str, why: Exception) -> None:
        """Count and log something malformed on ``topic``."""
        self.refused[topic] += 1
        name = what.decode(errors="backslashreplace") if isinstance(what, bytes) else what
        _log.warning("refused %s on %s: %s", ascii(name)[:100], topic, ascii(str(why))[:200])

    async def remove(self, topic: Topic, entry_ids: Iterable[bytes | str]) -> None:
        """Take refused entries off ``topic``."""
        if (ids := list(entry_ids)) and not self.read_only:
            await self.redis.xdel(self.key(topic), *ids)

    async def _take_out(self, table: str, junk: Mapping[bytes, bytes]) -> None:
        """Take refused fields off the hash ``table``, unless somebody has written a new value meanwhile."""
        fields = [] if self.read_only else [part for pair in junk.items() for part in pair]
        for start in range(0, len(fields), 1000):
            await self._forget(keys=[self.key(table)], args=fields[start : start + 1000])

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
        answer = await self.redis.xread({self.key(t): last for t, last in cursors.items()}, block=block_ms, count=1000)
        for name, entries in answer or []:
            cursors[names[name]] = entries[-1][0].decode()
        return bool(answer)

    async def trim(self, topic: Literal["events", "metrics"], read_id: str) -> bool:
        """Forget the entries up to ``read_id``: only of the monitor's topics, which no one else reads.

        False: Redis has no room for it, and who reads is not to wait for that.
        """
        when, _, sequence = read_id.partition("-")
        try:
            await self._trim.at_once([self.key(topic)], [f"{when}-{int(sequence) + 1}"])
        except redis.exceptions.ResponseError as error:
            if not is_full(error):
                raise
            return False
        return True

    # who is alive, where, with which weights

    async def beat(self, heartbeat: Heartbeat) -> None:
        await self._always(keys=[self.key("heartbeats")], args=["HSET", heartbeat.actor, encode(heartbeat)])

    async def heartbeats(self, known: Collection[str] | None = None) -> list[Heartbeat]:
        """The heartbeats of the actors ``known`` (None: of all); any other's is refused."""
        table = await self.redis.hgetall(self.key("heartbeats"))
        beats: list[Heartbeat] = []
        junk: dict[bytes, bytes] = {}
        for name, value in table.items():
            beat = self.decode("heartbeats", name, {b"m": value}, Heartbeat)
            if beat is not None and (beat.actor.encode() != name or (known is not None and beat.actor not in known)):
                self.refuse("heartbeats", name, CodecError(f"it is of {beat.actor}"))
                beat = None
            if beat is None:
                junk[name] = value
            else:
                beats.append(beat)
        await self._take_out("heartbeats", junk)
        return beats

    async def set_address(self, name: str, url: str) -> None:
        await self._always(keys=[self.key("addresses")], args=["HSET", name, url])

    async def leave_address(self, name: str) -> None:
        """Nobody is to look for ``name`` there any more; where Redis has no room, its next one takes its place."""
        try:
            await self.redis.at_once("HDEL", self.key("addresses"), name)
        except redis.exceptions.ResponseError as error:
            if not is_full(error):
                raise

    async def address(self, name: str, *, deadline_s: float) -> str:
        """The URL that ``name`` has published; waits for one. Raises TimeoutError naming it."""
        end = time.monotonic() + deadline_s
        while True:
            if (url := await self.redis.hget(self.key("addresses"), name)) is not None:
                if _URL.search(text := url.decode(errors="backslashreplace")):
                    return text
                self.refuse("addresses", name, CodecError(f"{text[:100]!r} is no URL"))
                await self._take_out("addresses", {name.encode(): url})
            if time.monotonic() > end:
                raise TimeoutError(f"waited {deadline_s:.0f} s for the address of {name}")
            await asyncio.sleep(0.02)  # a hash has no blocking read

    async def check_addresses(self, known: Collection[str]) -> None:
        """Refuse what is no URL or of none of the actors ``known``."""
        junk: dict[bytes, bytes] = {}
        for name, url in (await self.redis.hgetall(self.key("addresses"))).items():
            if name.decode(errors="replace") not in known or not _URL.search(url.decode(errors="backslashreplace")):
                self.refuse("addresses", name, CodecError(f"{url[:100]!r} is no URL of an actor of this run"))
                junk[name] = url
        await self._take_out("addresses", junk)

    async def engines(self, known: Collection[str] | None = None) -> dict[str, EngineState]:
        """The lines of the engines ``known`` (None: of all); any other's is refused."""
        return await self._lines(await self.redis.hgetall(self.key("engines")), known)

    async def fleet(self, roster: Roster) -> tuple[Roster, dict[str, EngineState]]:
        """:meth:`roster` (the one that is given, where there is none) and the lines of its engines, in one command."""
        line, flat = await self._fleet(keys=[self.key("roster"), self.key("engines")])
        roster = self._roster(line) or roster
        return roster, await self._lines(dict(zip(flat[::2], flat[1::2], strict=True)), roster.engines)

    async def _lines(self, table: Mapping[bytes, bytes], known: Collection[str] | None) -> dict[str, EngineState]:
        engines: dict[str, EngineState] = {}
        junk: dict[bytes, bytes] = {}
        for name, line in table.items():
            try:
                engine, state = name.decode(), msgspec.msgpack.decode(line, type=EngineState)
                if known is not None and engine not in known:
                    raise CodecError("no engine of this run")
                engines[engine] = state
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, CodecError) as error:
                self.refuse("engines", name, error)
                junk[name] = line
        await self._take_out("engines", junk)
        return engines

    async def set_roster(self, roster: Roster) -> None:
        await self._always(keys=[self.key("roster")], args=["SET", msgspec.msgpack.encode(roster)])

    async def roster(self) -> Roster | None:
        """The engines that the run has, as its supervisor says. None: it has said nothing, or nothing that can be read."""
        return self._roster(await self.redis.get(self.key("roster")))

    def _roster(self, line: bytes | None) -> Roster | None:
        try:
            return None if line is None else msgspec.msgpack.decode(line, type=Roster)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.refuse("roster", "roster", error)
            return None

    async def forget(self, actor: str, tables: Iterable[str] = ("heartbeats", "addresses", "engines")) -> None:
        """Take out what there is of an actor that has left."""
        for table in tables:
            await self.redis.hdel(self.key(table), actor)

    async def memory(self) -> tuple[int, int]:
        """Bytes that Redis uses, and may use (0: no limit)."""
        used, limit = await self._memory(keys=[self.key("memory")])
        return int(used), int(limit)

    async def forget_processes(self) -> None:
        """At the start of a launch, when no process of the run lives: what they said of themselves and each other is void.

        The snapshots on ``weights``, too: they are of weights that a learner which resumes from an earlier checkpoint never
        had, and their versions would be numbers given twice.
        """
        void = ("addresses", "engines", "roster", "heartbeats", "key", "snapshots", "control", "weights")
        void += ("memories", "meetings")  # whereabouts.py
        await self.redis.delete(*(self.key(name) for name in void))
