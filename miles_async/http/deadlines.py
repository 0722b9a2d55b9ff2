"""How long a client may take: for a head, for a body, and for taking an answer. Pure.

Promises: a client that sends or takes nothing for long, or little for very long, is given up; a slow one that gets on is not,
however much it sends; a pause that is ours (a body that nobody takes yet) counts for nobody.
"""

from __future__ import annotations

from typing import NamedTuple


class Deadlines(NamedTuple):
    """All in seconds, but for the rate."""

    head_s: float = 30.0  # from the first byte of a head to its end
    still_s: float = 60.0  # without a byte of a body, or one taken of an answer
    slow_s: float = 120.0  # then a body has to have come at the least rate, on the whole
    least_rate: float = 4096.0  # bytes per second

    def look_s(self, idle_s: float) -> float:
        """How often a connection, which may be idle for ``idle_s``, is looked at."""
        return max(0.02, min(self.head_s, self.still_s, self.slow_s, idle_s) / 4)


DEADLINES = Deadlines()


class BodyPace:
    """One that comes. Times are those of the loop's clock, in seconds."""

    def __init__(self, now: float) -> None:
        self._since = self._moved_at = now
        self._bytes = 0
        self._paused_at: float | None = None

    def came(self, size: int, now: float) -> None:
        self._bytes += size
        self._moved_at = now

    def pause(self, now: float) -> None:
        """Stop counting while nothing is taken, or asked for: the client cannot go on."""
        self._paused_at = now if self._paused_at is None else self._paused_at

    def go_on(self, now: float) -> None:
        if self._paused_at is not None:
            self._since += now - self._paused_at
            self._moved_at, self._paused_at = now, None

    def late(self, deadlines: Deadlines, now: float) -> str:
        """Why it is given up, empty if it is not."""
        if self._paused_at is not None:
            return ""
        if now - self._moved_at >= deadlines.still_s:
            return f"no byte of the body came within {deadlines.still_s:g} s"
        took = now - self._since
        if took >= deadlines.slow_s and self._bytes < deadlines.least_rate * took:
            return f"{self._bytes} bytes of the body came in {took:.0f} s: less than {deadlines.least_rate:g} a second"
        return ""


class Taking:
    """The deadline of what is written: how much the client has not taken."""

    def __init__(self) -> None:
        self._left = 0
        self._moved_at: float | None = None

    def late(self, left: int, deadlines: Deadlines, now: float) -> bool:
        """``left``: bytes that wait now."""
        if not left or left < self._left or self._moved_at is None:
            self._moved_at = now
        self._left = left
        return now - self._moved_at >= deadlines.still_s
