"""The ledger of versions: which engine serves what, and the only way to change a line of it.

    up ──► starting ──► serving ◄──► updating        each arrow is one compare-and-set in Redis, with its news on `weights`
              ▲  back      │ down       │ down
              └────────── down ◄────────┘

Promises: a line and what is told of it on ``weights`` are written by one atomic script, so that the stream and the ledger
agree at every moment, however long a process stands still in between; a change names the life of the engine that it is of
(its incarnation, and the epoch, which grows each time it starts or comes back), and one of a life that is over, or of an engine
that is down, changes and tells nothing, and so does one by who has been replaced itself (``bus/fence.py``); every change can be
repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from bus.client import Bus, EngineState
from bus.codec import encode
from bus.fence import FencedScript
from bus.messages import EngineDown, EngineServes, EngineUp, Message

_SCRIPT = Path(__file__).parent / "scripts" / "engine.lua"
_replace = msgspec.structs.replace


class VersionLedger:
    """Any process may hold one. Who changes nothing reads ``bus.engines``."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._swap = FencedScript(bus, _SCRIPT.read_text())

    async def up(self, engine: str, url: str, incarnation: int, version: int) -> EngineState:
        """The host of an engine says that it has started, with the weights ``version``; the broadcaster hears of it."""

        def start(old: EngineState | None) -> EngineState:
            return EngineState(url, incarnation, version, "starting", epoch=1 if old is None else old.epoch + 1)

        def news(new: EngineState) -> Message:
            return EngineUp(engine=engine, url=url, incarnation=incarnation, version=version, epoch=new.epoch)

        line = await self._change(engine, start, news)
        assert line is not None, "an engine may always start"
        return line

    async def heard(self, up: EngineUp) -> EngineState:
        """The line of an engine whose start was heard of; one that it has not written itself is written for it."""
        mine = EngineState(up.url, up.incarnation, up.version, "starting", up.epoch)
        line = await self._change(
            up.engine, lambda old: mine if old is None or old.incarnation < up.incarnation else old
        )
        return line or mine

    async def move(
        self, engine: str, line: EngineState, state: Literal["starting", "updating", "serving"], version: int
    ) -> EngineState | None:
        """In the life of ``line`` the engine is updated (for the first time: it starts), or serves ``version`` (which the
        others hear). Who serves or is updated gets requests.

        Returns the new line. None: it is down, or in another life, and nothing has changed.
        """
        new = _replace(line, state=state, version=version)

        def go_on(old: EngineState | None) -> EngineState | None:
            alive = old is None or (life(old) == life(line) and old.state != "down")
            return new if alive else None

        def news(new: EngineState) -> Message:
            where, number = new.url, new.incarnation
            return EngineServes(engine=engine, url=where, incarnation=number, version=version, epoch=new.epoch)

        return await self._change(engine, go_on, news if state == "serving" else None)

    async def down(
        self, engine: str, reason: str, incarnation: int | None = None, epoch: int = 0, *, told: bool = False
    ) -> bool:
        """Nobody may send it anything until it comes back, and everybody hears of it (``told``: they have).

        ``incarnation``, ``epoch``: of the life that has ended; None: whichever it is in. False: it is down already, or lives
        on in a later life, and nothing has changed. One without a line is told of all the same.
        """

        def fall(old: EngineState | None) -> EngineState | None:
            if old is None or old.state == "down" or _is_over(old, incarnation, epoch):
                return None
            return _replace(old, state="down")

        def news(new: EngineState) -> Message:
            return EngineDown(engine=engine, incarnation=new.incarnation, reason=reason, epoch=new.epoch)

        if await self._change(engine, fall, None if told else news) is not None:
            return True
        if not told and incarnation is not None and await self._line(engine) == b"":
            await self.bus.publish("weights", EngineDown(engine=engine, incarnation=incarnation, reason=reason))
        return False

    async def back(self, engine: str, line: EngineState) -> EngineState | None:
        """One that was down answers: a new life begins. None: its host has started it again, which it says itself."""

        def begin(old: EngineState | None) -> EngineState | None:
            if old is not None and old.incarnation > line.incarnation:
                return None
            return _replace(line, state="starting", epoch=max(line.epoch, 0 if old is None else old.epoch) + 1)

        return await self._change(engine, begin)

    async def mend(self, engine: str, ours: EngineState) -> EngineState:
        """Write ``ours`` over what nobody can have said; returns the line that stands.

        Others than the one who updates the engines say that one starts (its host, in a new life) or that it is down.
        """

        def judge(old: EngineState | None) -> EngineState:
            if old is None:
                return ours
            later = old.incarnation > ours.incarnation or (
                old.incarnation == ours.incarnation and old.epoch > ours.epoch
            )
            if (old.state == "starting" and later) or (old.state == "down" and old.incarnation == ours.incarnation):
                return old
            return _replace(ours, epoch=max(ours.epoch, old.epoch))

        return await self._change(engine, judge) or ours

    async def forget(self, engine: str, line: EngineState) -> bool:
        """Take out the line of an engine that has left. False: the line is another one by now."""
        raw = await self._line(engine)
        return _read(raw) == line and bool(await self._write(engine, raw, b"", b""))

    async def _change(
        self,
        engine: str,
        decide: Callable[[EngineState | None], EngineState | None],
        news: Callable[[EngineState], Message] | None = None,
    ) -> EngineState | None:
        """What ``decide`` makes of the line, which is what it was when that was decided. None: it stays as it is."""
        while True:
            raw = await self._line(engine)
            old = _read(raw)
            new = decide(old)
            if new is None or new == old:
                return new
            told = b"" if news is None else encode(news(new))
            if await self._write(engine, raw, msgspec.msgpack.encode(new), told):
                return new

    async def _line(self, engine: str) -> bytes:
        return await self.bus.redis.hget(self.bus.key("engines"), engine) or b""

    async def _write(self, engine: str, seen: bytes, new: bytes, told: bytes) -> int:
        keys = [self.bus.key("engines"), self.bus.key("weights")]
        return await self._swap(keys=keys, args=[engine, seen, new, told])


def life(line: EngineState) -> tuple[int, int]:
    """(incarnation, epoch): what nothing of an earlier life can be taken for."""
    return line.incarnation, line.epoch


def _is_over(line: EngineState, incarnation: int | None, epoch: int) -> bool:
    """Whether the engine has begun a later life than the one that is named (epoch 0: the incarnation alone is)."""
    if incarnation is None:
        return False
    return incarnation < line.incarnation or (incarnation == line.incarnation and 0 < epoch < line.epoch)


def _read(raw: bytes) -> EngineState | None:
    """None: there is no line, or nothing that is one (``bus.engines`` refuses that)."""
    try:
        return msgspec.msgpack.decode(raw, type=EngineState) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
