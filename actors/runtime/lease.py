"""The lease of an actor: how long it may live without a word from the bus, and who sees to that.

Promises: an actor that has been replaced, or has not reached the bus for longer than ``run.bus_lease_s``, ends itself, with a
line in its log, also while its event loop or a collective hangs: a thread of its own looks. Of a process that was stopped it is
the first act to look. What a checkpoint's rename waits for (:meth:`Lease.hold`) comes back only while the life goes on. While
heartbeats reach the bus the thread asks it nothing: it wakes up once a second.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from bus.fence import BusAway, Lookout, ReplacedError

REPLACED, LOST = 71, 72  # exit codes
LAST_WORDS = {
    REPLACED: "it had been replaced, and ended itself",
    LOST: "it had not reached the bus for longer than run.bus_lease_s, and ended itself",
}
LOOK_S = 1.0
ANSWER_S = 5.0  # for Redis to answer one look
QUIET_BEATS = 3  # heartbeats that are missing before the thread asks by itself
AGAIN_S = 0.2


class Lease:
    """Of one life. ``heartbeat_s``: how often :meth:`reached` is to be expected."""

    def __init__(
        self,
        lookout: Lookout,
        lease_s: float,
        heartbeat_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.life, self.lease_s = lookout.life, lease_s
        self._lookout, self._clock, self._leave = lookout, clock, leave
        self._quiet_s = min(QUIET_BEATS * max(heartbeat_s, LOOK_S), lease_s / 2)
        self._reached_at = clock()
        self._over = threading.Event()
        self._log = logging.getLogger(lookout.life.name)

    def begin(self) -> None:
        """Start the thread, which dies with the process."""
        threading.Thread(target=self._watch, name="lease", daemon=True).start()

    def close(self) -> None:
        """The actor has ended."""
        self._over.set()
        self._lookout.close()

    def reached(self) -> None:
        """The bus has answered a heartbeat, which is not answered after a life."""
        self._reached_at = self._clock()

    def replaced(self, why: str) -> None:
        """End the process: its life is over."""
        self._end(REPLACED, why)

    def hold(self) -> None:
        """Until the bus has said that this life goes on; the process ends where it is over, or the lease is."""
        while not self.look():
            time.sleep(AGAIN_S)

    def tick(self) -> None:
        """Ask the bus, where the heartbeats are quiet."""
        if self._clock() - self._reached_at >= self._quiet_s:
            self.look()

    def look(self) -> bool:
        """Ask the bus. False: there is no answer, and the lease is not over yet."""
        asked = self._clock()
        try:
            successor = self._lookout.successor()
        except BusAway as error:
            if (silent := self._clock() - self._reached_at) > self.lease_s:
                limit = f"run.bus_lease_s = {self.lease_s:g}"
                self._end(LOST, f"the bus was not reached for {silent:.0f} s, more than {limit}: {error}")
            return False
        if successor:
            self.replaced(str(ReplacedError(self.life, successor)))
        self._reached_at = max(self._reached_at, asked)
        return True

    def _watch(self) -> None:
        while not self._over.wait(min(LOOK_S, self._quiet_s / 2)):
            self.tick()

    def _end(self, code: int, why: str) -> None:
        self._log.error("ends itself: %s", why)
        self._leave(code)
