"""When an actor that died is started again: a budget and a back-off. Pure: the caller brings the clock.

Promises: an actor that dies again and again is given up after ``max_restarts`` within ``window_s``; waits double from
``backoff_s`` up to ``MAX_BACKOFF_S``.
"""

from __future__ import annotations

from miles_async.config.schema import Run

MAX_BACKOFF_S = 30.0


class RestartBudget:
    """The restarts of one run, by name."""

    def __init__(self, config: Run) -> None:
        self.config = config
        self._restarts: dict[str, list[float]] = {}

    def ask(self, name: str, now: float) -> float | None:
        """Seconds to wait before ``name``, which died at ``now``, is started again; None: it is given up."""
        recent = [then for then in self._restarts.get(name, []) if now - then < self.config.restart_window_s]
        if len(recent) >= self.config.max_restarts:
            return None
        self._restarts[name] = [*recent, now]
        return min(self.config.restart_backoff_s * 2 ** len(recent), MAX_BACKOFF_S)
