"""One engine as the router sees it: its connections, its requests in flight, and why it gets none if it gets none."""

from __future__ import annotations

from typing import Literal

from miles_async.http.client import Upstream
from miles_async.router.policies.breaker import Breaker
from miles_async.router.policies.policy import EngineState

RoutedState = Literal["up", "updating", "tripped", "suspected", "draining", "dead"]


class RoutedEngine:
    """Engines with the same name and another URL or incarnation are other engines to it."""

    def __init__(
        self, name: str, url: str, version: int, incarnation: int, api_key: str | None, breaker: Breaker
    ) -> None:
        """``api_key``: what the engine asks for. Raises ValueError: not such a URL."""
        self.name, self.version, self.incarnation = name, version, incarnation
        self.upstream = Upstream(url, api_key)
        self.breaker = breaker
        self.failure = ""  # the last one
        self.dead = ""  # why it is given up
        self.suspected = ""  # what it does wrong, while it is out for that
        self.updating = self.draining = False
        self.inflight = 0
        self.answered = 0
        self.moved_at = 0.0  # when it last gave something: some of an answer, or a token
        self._busy_s = 0.0
        self._busy_since = 0.0

    @property
    def url(self) -> str:
        return self.upstream.url

    @property
    def state(self) -> RoutedState:
        if self.dead:
            return "dead"
        if self.draining:
            return "draining"
        if self.suspected:
            return "suspected"
        if self.breaker.state != "closed":
            return "tripped"
        return "updating" if self.updating else "up"

    @property
    def trouble(self) -> str:
        """Why it gets no requests; empty if it does."""
        match self.state:
            case "dead":
                return self.dead
            case "draining":
                return f"draining, {self.inflight} requests in flight"
            case "suspected":
                return self.suspected
            case "tripped":
                return f"{self.breaker.in_a_row} failures in a row, last: {self.failure}"
            case _:
                return ""

    @property
    def for_policy(self) -> EngineState:
        state = self.state
        return state if state == "up" or state == "updating" else "out"

    def started(self, now: float) -> None:
        if self.inflight == 0:
            self._busy_since = now
        self.inflight += 1

    def finished(self, now: float) -> None:
        self.inflight -= 1
        if self.inflight == 0:
            self._busy_s += now - self._busy_since

    def moved(self, now: float) -> None:
        """Note that the engine gave something."""
        self.moved_at = now

    def quiet_seconds(self, now: float) -> float:
        """How long its requests in flight have had nothing from it; 0 if there are none."""
        return now - max(self._busy_since, self.moved_at) if self.inflight else 0.0

    def busy_seconds(self, now: float) -> float:
        """Time with at least one request in flight, since the engine was added."""
        return self._busy_s + (now - self._busy_since if self.inflight else 0.0)
