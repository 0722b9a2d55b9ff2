"""A circuit breaker: keeps requests from an engine that fails them. Pure; the time is given to it.

    closed ──`failures` in a row──► open ──`open_s` later──► half open, for one request ──its success──► closed
                                     ▲                                  └──its failure──► open

Promises: while it is open nothing passes; of those that want to probe one passes at a time; what comes back from requests
that started before it opened moves nothing.
"""

from __future__ import annotations

from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


class Breaker:
    """Raises ValueError: ``failures`` below 1, or ``open_s`` below 0 (seconds)."""

    def __init__(self, failures: int, open_s: float) -> None:
        if failures < 1 or open_s < 0:
            raise ValueError(f"failures = {failures}, open_s = {open_s}: expected at least 1, and at least 0")
        self.state: BreakerState = "closed"
        self.in_a_row = 0
        self.reopens_at = 0.0  # while it is open: when one request may probe
        self._failures, self._open_s = failures, open_s

    def succeeded(self) -> None:
        """A request that is no probe was answered."""
        self.in_a_row = 0

    def failed(self, now: float) -> bool:
        """A request that is no probe got no answer, or a 5xx. True: the breaker opens with it."""
        self.in_a_row += 1
        if self.state != "closed" or self.in_a_row < self._failures:
            return False
        self._open(now)
        return True

    def probe(self, now: float) -> bool:
        """Whether one request may pass now. If so it has to come to :meth:`probed` or :meth:`unprobed`."""
        if self.state != "open" or now < self.reopens_at:
            return False
        self.state = "half_open"
        return True

    def probed(self, success: bool, now: float) -> None:
        """What the probing request showed."""
        if self.state != "half_open":
            return
        if success:
            self.reset()
        else:
            self._open(now)

    def unprobed(self) -> None:
        """The probing request ended without showing anything: its client left. Another one may probe at once."""
        if self.state == "half_open":
            self.state = "open"

    def reset(self) -> None:
        """The engine begins anew."""
        self.state, self.in_a_row = "closed", 0

    def _open(self, now: float) -> None:
        self.state, self.reopens_at = "open", now + self._open_s
