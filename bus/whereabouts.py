"""What actors on several machines tell each other of where they are: whose memory they see, and where ranks meet.

Promises: who asks where the ranks of one incarnation meet is never told of another one's place, so that a rank which was cut
off from the run brings none of its successors' to itself; a new launch begins with nothing (``Bus.forget_processes``).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection

from bus.client import Bus
from bus.codec import CodecError
from bus.fence import FencedScript

MEMORIES, MEETINGS = "memories", "meetings"
_TELL = "return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])"
LOOK_S = 0.05  # a hash has no blocking read
_MEETING = re.compile(r"^tcp://[A-Za-z0-9_.:\[\]-]{1,255}:[0-9]{1,5}\Z")


async def tell_memory(bus: Bus, actor: str, memory: str) -> None:
    """``memory`` names what is shared by all processes that name it so; "": nothing is."""
    await FencedScript(bus, _TELL)(keys=[bus.key(MEMORIES)], args=[actor, memory])


async def see_memory(bus: Bus, actors: Collection[str], memory: str) -> bool:
    """Whether every one of ``actors`` has said last that it sees ``memory``."""
    if not memory or not actors:
        return bool(memory)
    told = await bus.redis.hmget(bus.key(MEMORIES), sorted(actors))
    return all(one == memory.encode() for one in told)


async def tell_meeting(bus: Bus, incarnation: int, place: str) -> None:
    """Where the learner's ranks of that incarnation meet: "tcp://HOST:PORT"."""
    await bus.redis.hset(bus.key(MEETINGS), str(incarnation), place)


async def meeting(bus: Bus, incarnation: int, deadline_s: float, who: str) -> str:
    """What :func:`tell_meeting` says, once it does. Raises TimeoutError naming ``who`` was to say it."""
    end = time.monotonic() + deadline_s
    while True:
        if (told := await bus.redis.hget(bus.key(MEETINGS), str(incarnation))) is not None:
            place = told.decode(errors="backslashreplace")
            if _MEETING.search(place):
                return place
            bus.refuse(MEETINGS, str(incarnation), CodecError(f"{place[:100]!r} is no place where ranks meet"))
            await bus.redis.hdel(bus.key(MEETINGS), str(incarnation))
        if time.monotonic() > end:
            raise TimeoutError(
                f"waited {deadline_s:g} s for {who} to say where the ranks of incarnation {incarnation} meet"
            )
        await asyncio.sleep(LOOK_S)
