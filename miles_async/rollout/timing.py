"""How long samples take, and how long a group waits for its last one. Pure: whoever measures passes the times in.

Promises: a group counts only where the end of each of its samples is known; nothing is said where none was.
"""

from __future__ import annotations

from typing import Any


class GroupTimes:
    """The times of one group, in seconds of any clock: when its first sample began, how long each took, when each ended."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.ends: list[float] = []
        self.seconds: list[float] = []

    def ended(self, began: float, end: float) -> None:
        """One sample, from its first token to its last."""
        self.began = began if self.began is None else min(self.began, began)
        self.ends.append(end)
        self.seconds.append(end - began)

    def answered(self, sent: float, now: float, answers: Any) -> None:
        """The samples of one request that have ended; each took as long as its engine says (``e2e_latency``)."""
        for answer in answers if isinstance(answers, list) else ():
            try:
                meta = answer["meta_info"]
                if meta["finish_reason"]["type"] != "abort":
                    self.ended(sent, min(now, sent + max(0.0, float(meta.get("e2e_latency", now - sent)))))
            except (LookupError, TypeError, ValueError, AttributeError):
                pass  # whoever reads its tokens will refuse it


class Timing:
    """What a worker reports of the groups that have ended since its last report."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._tails: list[float] = []

    def add(self, times: GroupTimes, size: int) -> None:
        """One attempt at a group of ``size`` samples has its tokens, or has come to nothing."""
        self._seconds += times.seconds
        if size > 1 and len(times.ends) == size and times.began is not None:
            ends = sorted(times.ends)
            whole = ends[-1] - times.began
            self._tails.append((ends[-1] - ends[(size - 1) // 2]) / whole if whole > 0 else 0.0)

    def report(self) -> dict[str, float]:
        """Means since the last report: seconds of a sample, the longest one, and the tail: the share of a group's time that
        is left when half of its samples have ended."""
        values: dict[str, float] = {}
        if self._seconds:
            values["rollout/sample_seconds"] = sum(self._seconds) / len(self._seconds)
            values["rollout/sample_seconds_max"] = max(self._seconds)
        if self._tails:
            values["rollout/tail_share"] = sum(self._tails) / len(self._tails)
        self._seconds, self._tails = [], []
        return values
