"""The groups that an engine is about to join: each waits for other ranks, which may never come, in a thread of its own.

Promises: a join ends when its group is there, when its sender's attempt is known to be over (it gives the group up, it asks for
the next one, or it does not wait for the answer any more), or at the deadline of ``groups.py``; there are at most ``MOST`` such
threads, those included that only a deadline ends; a group that comes together after its join has ended is left again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from miles_async.engines.embedded.control_bodies import InitGroupBody
from miles_async.engines.embedded.groups import TransferError, join_group, leave_group
from miles_async.hooks.daemon_thread import in_thread

MOST = 8


@dataclass(frozen=True)
class _Join:
    name: str
    over: threading.Event  # for the thread
    ended: asyncio.Future[str]  # for who waits for it: why


class Joins:
    """Of one engine."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Join] = {}
        self._threads: set[asyncio.Task[Any]] = set()

    async def join(self, body: InitGroupBody) -> Any:
        """The group, once all ranks are there. Raises TransferError.

        No other group is waited for any more: an engine has one sender, which is in one attempt at a time.
        """
        self.end_all("another group is formed")
        if len(self._threads) >= MOST:
            raise TransferError(f"{len(self._threads)} groups that were given up are being joined still")
        join = _Join(body.group_name, threading.Event(), asyncio.get_running_loop().create_future())
        thread = asyncio.ensure_future(in_thread(_joining(body, join.over)))
        self._threads.add(thread)
        self._waiting[join.name] = join
        is_there = False
        try:
            await asyncio.wait([thread, join.ended], return_when=asyncio.FIRST_COMPLETED)
            is_there = not join.ended.done()
        finally:
            if self._waiting.get(join.name) is join:  # and not a later one of the same name
                self.end(join.name, "nobody waits for it")
            thread.add_done_callback(self._threads.discard if is_there else self._leave)
        if not is_there:
            raise TransferError(f"{join.ended.result()} while group {join.name} was waited for")
        return thread.result()

    def end(self, name: str, why: str) -> bool:
        """Wait for that group no more. False: it is not waited for."""
        if (join := self._waiting.pop(name, None)) is None:
            return False
        join.over.set()
        join.ended.set_result(why)
        return True

    def end_all(self, why: str) -> None:
        """Wait for no group any more."""
        for name in list(self._waiting):
            self.end(name, why)

    def _leave(self, thread: asyncio.Task[Any]) -> None:
        """Of a thread whose join had ended before."""
        self._threads.discard(thread)
        if not thread.cancelled() and thread.exception() is None:
            threading.Thread(target=leave_group, args=(thread.result(),), daemon=True).start()


def _joining(body: InitGroupBody, over: threading.Event) -> Callable[[], Any]:
    return lambda: join_group(
        body.master_address,
        body.master_port,
        rank=body.rank_offset,
        world_size=body.world_size,
        name=body.group_name,
        backend=body.backend,
        over=over,
    )
