"""Asks the engines of a router for their load: every other part of the router that wants to know it asks here.

Promises: an engine is asked one question at a time, which is answered to all who asked meanwhile; nobody waits for an answer
longer than ``ASK_TIMEOUT_S``; an engine that does not answer in time, or answers something else, has no load, and what it
says in the place of HTTP is told.
"""

from __future__ import annotations

import asyncio
import json
from typing import NamedTuple

from miles_async.engines.loads import LoadReport, read_report
from miles_async.http.client_connection import UpstreamError
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet

ASK_TIMEOUT_S = 1.0


class _Question(NamedTuple):
    asked_at: float
    answer: asyncio.Task[LoadReport | None]


class Said(NamedTuple):
    """What an engine said of its load, and when it was asked, by the router's clock."""

    asked_at: float
    report: LoadReport


class LoadPoller:
    """The questions to the engines of one router."""

    def __init__(self, fleet: RouterFleet) -> None:
        self._fleet = fleet
        self._questions: dict[RoutedEngine, _Question] = {}  # the last one to each engine

    async def load(self, engine: RoutedEngine, max_age_s: float = 0.0) -> LoadReport | None:
        """The engine's load, asked for at most ``max_age_s`` ago, or now. None: it does not say."""
        now, last = self._fleet.clock(), self._questions.get(engine)
        if last is None or (last.answer.done() and now - last.asked_at >= max_age_s):
            self._questions = {one: asked for one, asked in self._questions.items() if one.name in self._fleet.engines}
            last = self._questions[engine] = _Question(now, asyncio.create_task(self._ask(engine)))
        return await asyncio.shield(last.answer)

    def latest(self, engine: RoutedEngine) -> Said | None:
        """What the last question to it came to; nobody is asked. None: nothing yet, or nothing of use."""
        last = self._questions.get(engine)
        if last is None or not last.answer.done() or last.answer.cancelled() or last.answer.exception():
            return None
        report = last.answer.result()
        return None if report is None else Said(last.asked_at, report)

    async def _ask(self, engine: RoutedEngine) -> LoadReport | None:
        try:
            status, content = await engine.upstream.get(b"/v1/loads", ASK_TIMEOUT_S)
            return read_report(json.loads(content)) if status == 200 else None
        except UpstreamError as error:
            if error.garbage:
                self._fleet.said_garbage(engine, f"GET /v1/loads: {error}")
            return None
        except (TimeoutError, ValueError, RecursionError):
            return None
