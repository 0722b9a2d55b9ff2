"""Continuous batching against a clock: when each request of a synthetic engine ends, and which weights made its tokens.

The latency model, all of it:
    a decode step of b requests takes      step_s + b * step_request_s          and gives each of them one token
    requests join between two steps, first come, first served, up to max_running; the others queue
    whoever joins is prefilled first:      prefill_token_s for each token of prompt and output so far (everybody waits)
    a pause stops the clock between two steps; a retracted request is prefilled again when it goes on
    ``slowdown`` multiplies all of it
Lengths are Pareto: ceil(shortest / u ** (1 / alpha)) with u in (0, 1] from the request's seed, cut at max_new_tokens. No cache
runs out.

Promises: pure (the time comes in with :meth:`Batch.advance`; what is asked for in between happens at that time); the work
is for each request and event, not for each token or step; a token's log-prob is :func:`logprob_of` the weights that were there
when its step ended, so that a reader sees which ones they were without trusting the version spans.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections import deque
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np

from miles_async.engines.embedded.request import EngineRequest, abort_reason, length_reason, stop_reason
from miles_async.engines.embedded.scheduler import PauseMode
from miles_async.engines.embedded.step_output import Partial, StepOutput

EOS = 1
MASK = 2**64 - 1


class Latency(NamedTuple):
    """Seconds."""

    step_s: float = 0.02
    step_request_s: float = 0.0002
    prefill_token_s: float = 0.00002


class Lengths(NamedTuple):
    """Tokens of a response, as the module says; the mean is alpha / (alpha - 1) * shortest."""

    shortest: int = 64
    alpha: float = 1.4

    def draw(self, seed: int) -> int:
        return math.ceil(self.shortest / uniform(seed) ** (1 / self.alpha))


class Draw(Protocol):
    """A distribution of lengths."""

    def draw(self, seed: int) -> int:
        """The tokens of the response with ``sampling_seed = seed``."""
        ...


def uniform(seed: int) -> float:
    """In (0, 1]."""
    return (_mix(seed & MASK) + 1) / 2**64


def logprob_of(version: str) -> float:
    """What every token has that was sampled under these weights: in [-2, -1)."""
    return -1.0 - zlib.crc32(version.encode()) % 1000 / 1000


def response(seed: int, lengths: Lengths, max_new_tokens: int, vocab: int) -> list[int]:
    """The whole response to a request with ``sampling_seed = seed`` that does not ignore the end token."""
    length = lengths.draw(seed)
    tokens = _tokens(seed, 0, min(length, max_new_tokens), vocab)
    return tokens if length > max_new_tokens else [*tokens[:-1], EOS]


class _Row:
    """A running request: it has ``steps - base`` tokens, and ends when ``steps`` reaches ``end``."""

    __slots__ = ("base", "end", "request")

    def __init__(self, request: EngineRequest, base: int, end: int) -> None:
        self.request, self.base, self.end = request, base, end


class Batch:
    """The scheduler of one synthetic engine; it has the methods of ``miles_async.engines.embedded.scheduler.Scheduler``."""

    def __init__(self, latency: Latency, lengths: Draw, *, vocab: int, max_running: int, version: str) -> None:
        self.latency, self.lengths, self.vocab, self.max_running = latency, lengths, vocab, max_running
        self.version = version  # what the tokens' spans say
        self.weights = version  # what sampled them; another one only if the engine lies
        self.paused = self.frozen = False
        self.slowdown = 1.0
        self.waiting: deque[EngineRequest] = deque()
        self.generated_tokens = 0
        self.cache = SimpleNamespace(max_tokens=1 << 20)
        self._rows: dict[int, _Row] = {}  # by the id of their request
        self._ends: list[tuple[int, int]] = []  # (step, id of the request), a heap; the gone ones are passed over
        self._streams = 0
        self._steps = 0
        self._at = 0.0  # when the last step or prefill ended; the next step begins then
        self._now = 0.0

    # -- what others ask ----------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self.waiting and not self._rows

    @property
    def rows(self) -> Any:
        """The gauges of ``/v1/loads``: how many run, and how long they are."""
        lengths = [len(row.request.item.prompt) + self._steps - row.base for row in self._rows.values()]
        return SimpleNamespace(count=len(lengths), length=np.array(lengths, np.int64))

    def next_event(self) -> float | None:
        """When :meth:`advance` has something to do."""
        if self.paused or self.frozen or not self._rows:
            return None
        return self._at + self._until_event() * self._step_s()

    # -- commands, at the time of the last advance ----------------------------------------------------------------

    def submit(self, requests: Iterable[EngineRequest]) -> None:
        self.waiting.extend(requests)
        self._begin_if_idle()

    def abort(self, victims: Iterable[EngineRequest]) -> list[EngineRequest]:
        """End live requests now, with the output they have. Returns those that were live."""
        ended = []
        for request in victims:
            if request.finish is None:
                row = self._rows.get(id(request))
                if row is not None:
                    self._write(row)
                    self._leave(request)
                request.finish = abort_reason("Aborted" if row or request.output else "Abort in waiting queue")
                request.version = self.version
                ended.append(request)
        self.waiting = deque(request for request in self.waiting if request.finish is None)
        self._begin_if_idle()
        return ended

    def pause(self, mode: PauseMode) -> list[EngineRequest]:
        """Stop sampling until :meth:`resume`. Returns the requests that ``abort`` ended."""
        self.paused = True
        if mode == "retract":
            rows = sorted(self._rows.values(), key=lambda row: row.request.received, reverse=True)
            for row in rows:
                self._write(row)
                self._leave(row.request)
                row.request.retractions += 1
                self.waiting.appendleft(row.request)
        running = [row.request for row in self._rows.values()]
        return self.abort([*running, *self.waiting]) if mode == "abort" else []

    def resume(self) -> None:
        self.paused = False
        self._at = max(self._at, self._now)
        self._begin_if_idle()

    def freeze(self, frozen: bool) -> None:
        """A compute side that hangs, or does so no more."""
        self.frozen = frozen
        self._at = max(self._at, self._now)
        self._begin_if_idle()

    def flush(self) -> bool:
        """False while requests hold the cache or (not paused) wait for it."""
        return not self._rows and (self.paused or not self.waiting)

    def set_version(self, version: str, weights: str | None = None) -> None:
        """From the next token on the spans say ``version``. ``weights``: what is really there, if it is another one."""
        for row in self._rows.values():
            self._write(row)
        for request in (*(row.request for row in self._rows.values()), *self.waiting):
            if request.output and version != self.version:
                request.version_events.append((self.version, len(request.output)))
        self.version, self.weights = version, version if weights is None else weights

    # -- the clock ----------------------------------------------------------------------------------------------

    def advance(self, now: float) -> StepOutput:
        """Everything that happens up to ``now``: requests that are finished, and progress of streaming ones."""
        finished: list[EngineRequest] = []
        before, self._now = self._steps, now
        while self._rows and not self.paused and not self.frozen:
            step_s, until_event = self._step_s(), self._until_event()
            steps = min(int((now - self._at) / step_s + 1e-6), until_event)
            if steps <= 0:
                break
            self._steps += steps
            self._at += steps * step_s
            self.generated_tokens += steps * len(self._rows)
            finished += self._finish()
            self._admit()
        partial = [self._progress(row) for row in self._rows.values() if row.request.stream and self._steps > before]
        return StepOutput(finished, [p for p in partial if p.output] if self._streams else [])

    def _until_event(self) -> int:
        """Steps until somebody joins, ends or has to be told."""
        if self._streams or (self.waiting and len(self._rows) < self.max_running):
            return 1
        while self._ends[0][1] not in self._rows or self._rows[self._ends[0][1]].end != self._ends[0][0]:
            heapq.heappop(self._ends)
        return self._ends[0][0] - self._steps

    def _step_s(self) -> float:
        return self.slowdown * (self.latency.step_s + len(self._rows) * self.latency.step_request_s)

    def _begin_if_idle(self) -> None:
        """An engine without work does not wait for the end of a step."""
        if not self._rows and not self.paused and not self.frozen:
            self._at = max(self._at, self._now)
            self._admit()

    def _admit(self) -> None:
        while self.waiting and len(self._rows) < self.max_running:
            request = self.waiting.popleft()
            done, limit = len(request.output), max(1, request.limit)
            length = min(limit, self.lengths.draw(request.seed)) if EOS in request.stop_ids else limit
            row = _Row(request, self._steps - done, self._steps - done + max(length, done + 1))
            self._rows[id(request)] = row
            self._streams += request.stream
            heapq.heappush(self._ends, (row.end, id(request)))
            self._at += self.slowdown * self.latency.prefill_token_s * request.length
            if request.item.logprob_start_len >= 0 and request.input_logprobs is None:
                asked = len(request.item.prompt) - request.item.logprob_start_len
                request.input_logprobs = [None, *[logprob_of(self.weights)] * (asked - 1)] if asked > 0 else []

    def _finish(self) -> list[EngineRequest]:
        finished = []
        for row in [row for row in self._rows.values() if row.end == self._steps]:
            request = row.request
            self._write(row)
            if EOS in request.stop_ids and len(request.output) == self.lengths.draw(request.seed):
                request.output[-1] = EOS
                request.finish = stop_reason(EOS)
            else:
                request.finish = length_reason(len(request.output))
            request.version = self.version
            self._leave(request)
            finished.append(request)
        return finished

    def _leave(self, request: EngineRequest) -> None:
        del self._rows[id(request)]
        self._streams -= request.stream

    def _write(self, row: _Row) -> None:
        """Bring the request's output up to the last step."""
        request, have, count = row.request, len(row.request.output), self._steps - row.base
        if count > have:
            request.output += _tokens(request.seed, have, count, self.vocab)
            request.logprobs += [logprob_of(self.weights)] * (count - have)

    def _progress(self, row: _Row) -> Partial:
        self._write(row)
        row.request.version = self.version
        return Partial(row.request, row.request.output.copy(), row.request.logprobs.copy())


def _mix(x: int) -> int:
    """splitmix64 (Steele et al. 2014): 64 bits that look random."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def _tokens(seed: int, start: int, end: int, vocab: int) -> list[int]:
    """Tokens ``start`` to ``end`` of the response with ``seed``: ids above EOS."""
    mixed = (np.arange(start, end, dtype=np.uint64) + np.uint64(_mix(seed & MASK))) * np.uint64(0xBF58476D1CE4E5B9)
    return (EOS + 1 + (mixed >> np.uint64(33)) % np.uint64(vocab - EOS - 1)).astype(np.int64).tolist()
