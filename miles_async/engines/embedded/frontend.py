"""Between HTTP and the compute thread: requests in, answers out, on the event loop.

Promises: one job for each HTTP request however many sequences it asks for; no work on the loop for a token unless the
job streams; a job always ends: with its answers, by abort, or with EngineStopped when the engine fails.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from miles_async.engines.embedded import protocol
from miles_async.engines.embedded.protocol import Item
from miles_async.engines.embedded.request import EngineRequest, render, render_partial
from miles_async.engines.embedded.sampling import NO_TOP_K
from miles_async.engines.embedded.sampling_params import RequestError, RequestLimits, Sampling
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.engines.embedded.step_output import Partial, StepOutput
from miles_async.engines.embedded.text import TextCodec
from miles_async.engines.embedded.worker import EngineStopped, EngineThread

HEALTH_TIMEOUT_S = 20.0  # as SGLang: how long a probe waits for one token

_encode = msgspec.json.Encoder().encode


class Job:
    """The sequences of one HTTP request. ``stream`` is a queue of chunks for a streaming job, else None."""

    __slots__ = ("computed", "done", "is_list", "remaining", "requests", "stream")

    def __init__(self, requests: list[EngineRequest], *, is_list: bool, stream: bool) -> None:
        self.requests = requests
        self.is_list = is_list
        self.remaining = len(requests)
        self.computed = 0  # counted on the compute thread, which delivers them when they are all there
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stream: asyncio.Queue[Partial | EngineRequest | None] | None = asyncio.Queue() if stream else None


class Frontend:
    """Owns the table of live requests. Its methods belong to the event loop's thread."""

    def __init__(
        self, scheduler: Scheduler, limits: RequestLimits, codec: TextCodec, eos_token_ids: frozenset[int]
    ) -> None:
        self.limits = limits
        self.codec = codec
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        self.compute = EngineThread(scheduler, asyncio.get_running_loop(), self._deliver, self._due, self._fail)
        self._eos = eos_token_ids
        self._live: dict[str, EngineRequest] = {}
        self._random = random.Random(os.urandom(16))
        self._rid_prefix = os.urandom(8).hex()
        self._rid_count = 0

    def submit(self, data: bytes) -> Job:
        """Parse a /generate body and queue it. Raises RequestError (nothing queued then) or EngineStopped."""
        parsed = protocol.parse(data)
        prompts: list[Any] = parsed.prompts
        if parsed.body.text is not None:
            prompts = self.codec.encode(prompts)
        items = protocol.expand(parsed, prompts, self.limits, self._new_rid)
        for item in items:
            if item.rid in self._live:
                raise RequestError(f"Duplicate request ID detected: {item.rid}")
        return self._queue(items, is_list=parsed.is_list or len(items) > 1, stream=parsed.stream)

    def _queue(self, items: list[Item], *, is_list: bool, stream: bool) -> Job:
        if not self.compute.alive:
            raise EngineStopped(f"the engine has stopped: {self.failure or 'it is shutting down'}")
        requests = [self._new_request(item, stream) for item in items]
        job = Job(requests, is_list=is_list, stream=stream)
        for request in requests:
            request.job = job
            self._live[request.item.rid] = request
        self.compute.submit(requests)
        return job

    def _new_request(self, item: Item, stream: bool) -> EngineRequest:
        sampling = item.sampling
        stops = frozenset[int]()
        if not sampling.ignore_eos:  # as SGLang: ignore_eos switches stop_token_ids off, too
            stops = self._eos | sampling.stop_token_ids if sampling.stop_token_ids else self._eos
        seed = self._random.getrandbits(64) if sampling.seed is None else sampling.seed
        window = self.codec.stop_window(sampling.stop) if sampling.stop else 0
        return EngineRequest(item, seed, stops, stream=stream, stop_window=window)

    def answer(self, job: Job) -> bytes:
        """The JSON of a finished job. Raises RequestError if the engine ended one of its requests with an error."""
        for request in job.requests:
            if request.finish is not None and (status := request.finish.get("status_code")) is not None:
                raise RequestError(request.finish["message"], status=status)
        answers = [render(request, self.codec) for request in job.requests]
        return _encode(answers if job.is_list else answers[0])

    async def chunks(self, job: Job) -> AsyncIterator[bytes]:
        """The server-sent events of a streaming job, each with all output so far, ended by ``[DONE]``."""
        assert job.stream is not None
        index = {id(request): i for i, request in enumerate(job.requests)}
        while (chunk := await job.stream.get()) is not None:
            request = chunk if isinstance(chunk, EngineRequest) else chunk.request
            if isinstance(chunk, EngineRequest):
                answer = render(chunk, self.codec)
            else:
                answer = render_partial(request, chunk.output, chunk.logprobs, self.codec)
            if job.is_list:
                answer["index"] = index[id(request)]
            yield b"data: " + _encode(answer) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def abort_rid(self, rid: str) -> None:
        """Abort one live request; an unknown id is ignored."""
        if (request := self._live.get(rid)) is not None:
            self.compute.abort([request])

    def abort_job(self, job: Job) -> None:
        self.compute.abort(job.requests)

    def abort_all(self) -> None:
        self.compute.abort(list(self._live.values()))

    async def pause(self, mode: Any) -> None:
        finished = await self.compute.call(lambda scheduler: scheduler.pause(mode))
        self._deliver(StepOutput(finished, []))

    async def resume(self) -> None:
        await self.compute.call(lambda scheduler: scheduler.resume())

    async def probe(self) -> bool:
        """Whether the engine samples one token within HEALTH_TIMEOUT_S."""
        sampling = Sampling(1, 1.0, True, 1.0, NO_TOP_K, 0.0, (), frozenset(), True, None, True, False)
        try:
            job = self._queue(
                [Item(f"HEALTH_{self._new_rid()}", [0], sampling, False, -1)], is_list=False, stream=False
            )
            try:
                async with asyncio.timeout(HEALTH_TIMEOUT_S):
                    await job.done
            finally:
                self.abort_job(job)
        except (TimeoutError, EngineStopped):
            return False
        return True

    @staticmethod
    def _due(output: StepOutput) -> bool:
        """On the compute thread: whether a job has all its answers with this output, or streams."""
        due = bool(output.partial)
        for request in output.finished:
            job: Job = request.job
            job.computed += 1
            due = due or job.stream is not None or job.computed == len(job.requests)
        return due

    def _deliver(self, output: StepOutput) -> None:
        for partial in output.partial:
            stream = partial.request.job.stream
            if stream is not None:
                stream.put_nowait(partial)
        for request in output.finished:
            self._live.pop(request.item.rid, None)
            job: Job = request.job
            request.job = None  # no reference cycle: looking for them would cost more than the rest
            job.remaining -= 1
            if job.stream is not None:
                job.stream.put_nowait(request)
                if not job.remaining:
                    job.stream.put_nowait(None)
            if not job.remaining and not job.done.done():
                job.done.set_result(None)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.failed.set()
        for request in self._live.values():
            job: Job = request.job
            if not job.done.done():
                job.done.set_exception(EngineStopped(f"the engine failed: {error}"))
                job.done.exception()  # seen: a streaming job does not wait for it
            if job.stream is not None:
                job.stream.put_nowait(None)
        self._live.clear()

    def _new_rid(self) -> str:
        self._rid_count += 1
        return f"{self._rid_prefix}{self._rid_count:016x}"
