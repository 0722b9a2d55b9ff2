"""The compute thread: one thread owns the scheduler; the event loop talks to it through a queue.

Promises: the loop never waits for the model; what steps finish reaches it in one call, as soon as somebody can go on with it
and before the thread rests; commands run between steps, in order; an exclusive command (a weight update) runs at once while
generation is paused, otherwise after all requests that came before it have finished, those behind it waiting; an error in a
step ends the engine, loudly.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from miles_async.engines.embedded.request import EngineRequest
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.engines.embedded.step_output import StepOutput

T = TypeVar("T")
_log = logging.getLogger(__name__)


class EngineStopped(RuntimeError):
    """The compute thread has ended."""


class EngineThread:
    """Runs a Scheduler. ``deliver`` and ``on_failure`` are called on the event loop, ``due`` on the thread: whether somebody
    can go on with what an output has; otherwise it is kept for the next one."""

    def __init__(
        self,
        scheduler: Scheduler,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[StepOutput], None],
        due: Callable[[StepOutput], bool],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.scheduler = scheduler
        self._loop = loop
        self._deliver = deliver
        self._due = due
        self._kept: list[EngineRequest] = []  # finished, and not yet delivered
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._exclusive: deque[Callable[[], None]] = deque()
        self._held: list[EngineRequest] = []  # came behind an exclusive command
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine-compute", daemon=True)

    # -- called on the event loop -------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def submit(self, requests: list[EngineRequest]) -> None:
        """Queue requests; they come back through ``deliver``."""
        self._inbox.put(lambda: self._accept(requests))

    def abort(self, requests: list[EngineRequest]) -> None:
        """End these requests, wherever they are, with the output they have."""
        self._inbox.put(lambda: self._send(StepOutput(self.scheduler.abort(requests), [])))

    async def call(self, function: Callable[[Scheduler], T]) -> T:
        """Run ``function`` between two steps. Raises what it raises, or EngineStopped."""
        job, future = self._job(function)
        self._inbox.put(job)
        return await future

    async def exclusive(self, function: Callable[[Scheduler], T]) -> T:
        """Run ``function`` when no request is under way, or at once while paused."""
        job, future = self._job(function)
        self._inbox.put(lambda: self._exclusive.append(job))
        return await future

    async def close(self, timeout: float = 10.0) -> None:
        """End the thread after the step it is in. Raises TimeoutError if that takes longer than ``timeout`` seconds."""
        self._closing = True
        self._inbox.put(lambda: None)
        await asyncio.to_thread(self._thread.join, timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the engine's compute thread did not end its step within {timeout:g} s")

    def _job(self, function: Callable[[Scheduler], T]) -> tuple[Callable[[], None], asyncio.Future[T]]:
        if not self.alive:
            raise EngineStopped("the engine's compute thread has ended")
        future: asyncio.Future[T] = self._loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if not future.done():
                future.set_result(value) if error is None else future.set_exception(error)

        def job() -> None:
            try:
                value = function(self.scheduler)
            except Exception as error:
                self._loop.call_soon_threadsafe(settle, None, error)
            else:
                self._loop.call_soon_threadsafe(settle, value, None)

        return job, future

    # -- the compute thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                if self._kept and not self.scheduler.runnable:
                    self._flush(StepOutput([], []))
                self._take(wait=not self.scheduler.runnable)
                self._run_exclusive()
                if self.scheduler.runnable:
                    output = self.scheduler.step()
                    for request in output.begun:
                        request.began = time.time()
                    self._send(output)
                    self._run_exclusive()  # the step may have finished what an exclusive command waits for
        except BaseException as error:
            _log.critical("the engine's compute thread failed", exc_info=error)
            self._closing = True
            self._loop.call_soon_threadsafe(self._on_failure, error)

    def _take(self, *, wait: bool) -> None:
        """Run what is in the inbox; with ``wait``, block for the first."""
        if wait:
            self._inbox.get()()
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            command()

    def _run_exclusive(self) -> None:
        while self._exclusive and (self.scheduler.paused or self.scheduler.idle):
            self._exclusive.popleft()()
        if self._held and not self._exclusive:
            self.scheduler.submit(request for request in self._held if request.finish is None)
            self._held = []

    def _accept(self, requests: list[EngineRequest]) -> None:
        if self._exclusive and not self.scheduler.paused:
            self._held.extend(requests)
        else:
            self.scheduler.submit(requests)

    def _send(self, output: StepOutput) -> None:
        if not output.finished and not output.partial:
            return
        if self._due(output):
            self._flush(output)
        else:
            self._kept += output.finished

    def _flush(self, output: StepOutput) -> None:
        """Deliver what was kept and ``output``: waking the loop costs as much as a twentieth of a small model's step."""
        kept, self._kept = self._kept, []
        self._loop.call_soon_threadsafe(self._deliver, StepOutput(kept + output.finished, output.partial))
