"""A synthetic engine's place in the event loop: one timer for the next event of its batch, no thread.

Promises: what ``miles_async.engines.embedded.worker.EngineThread`` promises, for a :class:`Batch`: what is asked for happens
between two steps; an exclusive command (a weight update) runs at once while generation is paused, otherwise after all requests
that came before it have finished, those behind it waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from benchmarks.lib.synthetic.batch import Batch
from miles_async.engines.embedded.request import EngineRequest
from miles_async.engines.embedded.step_output import StepOutput
from miles_async.engines.embedded.worker import EngineStopped


class LoopCompute:
    """Runs a Batch by the loop's clock. ``deliver`` is given what has ended or moved."""

    def __init__(self, batch: Batch, deliver: Callable[[StepOutput], None]) -> None:
        self.scheduler = batch
        self.alive = True
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._exclusive: deque[tuple[Callable[[Batch], Any], asyncio.Future[Any]]] = deque()
        self._held: list[EngineRequest] = []  # came behind an exclusive command

    def catch_up(self) -> None:
        """Bring the batch to the present."""
        if self.alive:
            self._send(self.scheduler.advance(self._loop.time()))
            self._settle()

    def submit(self, requests: list[EngineRequest]) -> None:
        self.catch_up()
        if self._exclusive and not self.scheduler.paused:
            self._held.extend(requests)
        else:
            self.scheduler.submit(requests)
        self._settle()

    def abort(self, requests: list[EngineRequest]) -> None:
        self.catch_up()
        self._send(StepOutput(self.scheduler.abort(requests), []))
        self._settle()

    async def call(self, function: Callable[[Batch], Any]) -> Any:
        """Run ``function`` between two steps. Raises EngineStopped: the engine has died."""
        if not self.alive:
            raise EngineStopped("the engine has died")
        self.catch_up()
        value = function(self.scheduler)
        self._settle()
        return value

    async def exclusive(self, function: Callable[[Batch], Any]) -> Any:
        """Run ``function`` when no request is under way, or at once while paused. Raises EngineStopped."""
        if not self.alive:
            raise EngineStopped("the engine has died")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._exclusive.append((function, future))
        self.catch_up()
        return await future

    def close(self) -> None:
        """The engine dies: nothing that was under way is answered."""
        self.alive = False
        if self._timer is not None:
            self._timer.cancel()
        for _, future in self._exclusive:
            if not future.done():
                future.set_exception(EngineStopped("the engine has died"))

    def _send(self, output: StepOutput) -> None:
        if output.finished or output.partial:
            self._deliver(output)

    def _settle(self) -> None:
        """Run the exclusive commands whose time has come, and set the timer for what comes next."""
        batch = self.scheduler
        while self._exclusive and (batch.paused or batch.idle):
            function, future = self._exclusive.popleft()
            if not future.done():
                future.set_result(function(batch))
        if self._held and not self._exclusive:
            held, self._held = self._held, []
            batch.submit(request for request in held if request.finish is None)
        if self._timer is not None:
            self._timer.cancel()
        at = batch.next_event()
        self._timer = None if at is None else self._loop.call_at(at, self.catch_up)
