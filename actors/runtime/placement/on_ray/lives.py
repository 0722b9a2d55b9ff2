"""One life of an actor in Ray: its handle, where it is, and how it ended.

Promises: what Ray says of an end becomes one line for people; nothing here waits for more than it is told to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError, RuntimeEnvSetupError

from actors.runtime.placement.base import Ending, exit_words
from actors.runtime.placement.on_ray.host import At
from actors.runtime.placement.on_ray.layout import Seat

IN_ORDER = Ending(True, "it ended before the run did")


class Life:
    """``handle``: of its :class:`Host`. ``outcome``: what it returned, or Ray's error; it is told by a thread of Ray's."""

    def __init__(self, seat: Seat, handle: Any, at: Any, over: Any) -> None:
        self.seat, self.handle = seat, handle
        self._met: Future[At] = at.future()
        self.outcome: Future[int] = over.future()
        self._began = time.monotonic()
        self.state = "running"  # of its process, when it was looked at last

    @property
    def at(self) -> At | None:
        """Where it is; None: it has no place yet, or was never heard of."""
        met = self._met
        return met.result() if met.done() and not met.cancelled() and met.exception() is None else None

    @property
    def runs(self) -> bool:
        return not self.outcome.done()

    @property
    def waits_s(self) -> float | None:
        """How long it has had no place; None: it has one, or is over."""
        return time.monotonic() - self._began if self.runs and self.at is None else None

    def kill(self) -> None:
        """Its process, at once; Ray starts no other. Also of one that has ended, or has no place yet."""
        ray.kill(self.handle, no_restart=True)

    async def ending(self, ready_timeout_s: float, free: Callable[[], str]) -> Ending:
        """Wait for its end; one that has no place after ``ready_timeout_s`` is given up."""
        over = asyncio.shield(asyncio.wrap_future(self.outcome))
        met = asyncio.gather(asyncio.wrap_future(self._met), return_exceptions=True)  # its error the other one has, too
        await asyncio.wait({met, over}, timeout=ready_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not met.done() and not over.done():
            self.kill()
            return Ending(False, f"it got no place within {ready_timeout_s:g} s: {free()}")
        try:
            code = await over
        except RayError as error:
            return Ending(False, words(error, self.at))
        return IN_ORDER if code == 0 else Ending(False, exit_words(code))


def words(error: RayError, at: At | None) -> str:
    """What Ray says of an end, in a line. ``at``: where it was."""
    # of a process that was to become an actor: the package is not there, say
    if isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False):
        last = str(error).strip().splitlines()[-1]
        return f"{last} (on {at.host})" if at else last
    if isinstance(error, RuntimeEnvSetupError):
        return " ".join(str(error).split())[:200]
    where, said = f" {at.where}" if at else "", str(error)
    if "node has died" in said or "node was terminated" in said:
        return f"its machine was lost: {at.host if at else 'before it had begun'}"
    if isinstance(error, ActorUnavailableError):  # it may live: whoever is told of an end sees to that
        return f"its process{where} did not answer Ray"
    if "running low on memory" in said:
        return f"Ray killed its process{where}: its machine is short of memory"
    if "killed by `ray.kill`" in said:
        return f"its process{where} was killed"
    if "worker process has died" in said:
        return f"its process{where} was killed, or it crashed"
    return f"its process{where} ended: {' '.join(said.split())[:200]}"
