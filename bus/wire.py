"""Connections to Redis on which the commands of all tasks are under way at once.

Promises: commands reach Redis in the order in which they were asked, and those that are asked in one turn of the event loop in
one write; each gets its own answer, also where the task of another one was cancelled; a connection that breaks is an error
of every command on it, which whoever asked may ask again, and the next one makes a new connection. A command that blocks in
Redis has a connection to itself as long as it does, and takes it along when it is cancelled.
(A general client has a connection for each command that is under way, a turn of the loop to send and one to receive: three
times the CPU.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import hiredis
import redis.exceptions
from redis.asyncio.connection import ConnectionPool, DefaultParser


class Wires:
    """One connection for all that does not block, and one for each command that does. ``pool`` makes them."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool, self._shared = pool, Wire(pool)
        self._idle: list[Wire] = []  # of commands that block

    async def ask(self, args: Sequence[Any]) -> Any:
        """The answer to one command. Raises what Redis answers, and what making a connection raises."""
        if b"BLOCK" not in args:
            return await self._shared.ask(args)
        wire = self._idle.pop() if self._idle else Wire(self._pool)
        try:
            answer = await wire.ask(args)
        except BaseException:
            await wire.close()  # so that Redis, too, gives up what nobody waits for
            raise
        self._idle.append(wire)
        return answer

    def ahead(self, args: Sequence[Any]) -> None:
        """Send a command in front of the next one that does not block. It may be lost: nobody hears of its answer."""
        self._shared.ahead(args)

    async def close(self) -> None:
        """Break off what is under way; can be used again."""
        for wire in (self._shared, *self._idle):
            await wire.close()
        self._idle.clear()


class Wire(asyncio.Protocol):
    """One connection, made when it is needed."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: Any = None
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting = asyncio.Lock()
        self._unsent: list[bytes] = []
        self._asked: deque[asyncio.Future[Any] | None] = deque()  # oldest first, as the answers come; None: nobody

    async def ask(self, args: Sequence[Any]) -> Any:
        """As :meth:`Wires.ask`."""
        if self._transport is None or self._loop is not asyncio.get_running_loop():
            await self._connect()
        assert self._loop is not None
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._put([hiredis.pack_command((*args[0].split(), *args[1:]))], answer)  # the name may be two words
        return await answer

    def ahead(self, args: Sequence[Any]) -> None:
        """As :meth:`Wires.ahead`."""
        if self._transport is not None:
            self._put(self._connection.pack_command(*args), None)  # which copies nothing large

    def _put(self, packed: list[bytes], answer: asyncio.Future[Any] | None) -> None:
        if not self._unsent and self._loop is not None:
            self._loop.call_soon(self._send)
        self._unsent += packed
        self._asked.append(answer)

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:  # else it has broken meanwhile, and who asked knows
            self._transport.writelines(unsent)

    async def _connect(self) -> None:
        async with self._connecting:
            loop = asyncio.get_running_loop()
            if self._transport is not None and self._loop is loop:
                return
            await self.close()
            connection: Any = self._pool.make_connection()
            await connection.connect_check_health(retry_socket_connect=False)  # who asks tries again
            self._reader = hiredis.Reader(
                protocolError=redis.exceptions.InvalidResponse, replyError=DefaultParser.parse_error
            )
            self._connection, self._loop, self._transport = connection, loop, connection._writer.transport
            connection._writer.transport.set_protocol(self)  # no stream, no task: an answer wakes who asked

    async def close(self) -> None:
        """Break off what is under way; can be used again."""
        connection, self._connection = self._connection, None
        self._break("the connection was closed")
        if connection is not None:
            await connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not False:
                asked = self._asked.popleft()
                if asked is None or asked.done():
                    continue  # nobody waits for it
                if isinstance(answer, Exception):
                    asked.set_exception(answer)
                else:
                    asked.set_result(answer)
        except (redis.exceptions.InvalidResponse, IndexError) as error:  # no answer, or none that was asked for
            self._break(f"what came is no answer: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(f"the connection was lost{f': {exc}' if exc else ''}")

    def _break(self, why: str) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._unsent = []
        asked, self._asked = self._asked, deque()
        for answer in asked:
            if answer is not None and not answer.done():
                answer.set_exception(redis.exceptions.ConnectionError(why))
