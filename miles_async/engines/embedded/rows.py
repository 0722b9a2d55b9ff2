"""The running batch as arrays: row ``i`` is one running request, with its counters, parameters and output so far.

Promises: rows in use are the first ``count``; adding, advancing and removing rows costs a few array operations however many
rows there are (Python work is paid for each request, not for each token). Host memory only; no model, no I/O.
"""

from __future__ import annotations

import operator

import numpy as np
import numpy.typing as npt

from miles_async.engines.embedded.request import EngineRequest
from miles_async.engines.embedded.routes import Routes, RowRoutes
from miles_async.engines.embedded.sampling import NO_TOP_K, mixed

NO_TOKEN = -1
_FLOATS = operator.attrgetter("temperature", "top_p", "min_p")

# bits of ``flags``
GREEDY = 1
FILTERED = 2  # wants top-k, top-p or min-p
WATCHED = 4  # streams, or has stop strings: looked at after every token
BIASED = 8  # has a logit_bias
TEMPERED = 16  # has another temperature than 1
ROUTED = 32  # wants its experts


class Rows:
    """Columns over the running requests, each ``[capacity]`` unless said otherwise.

    What a row has lies in few arrays, so that moving rows is few operations: the numbers (``[columns, capacity]``), the
    output (``[capacity, 2, outputs]``) and its stop ids.
    """

    def __init__(self) -> None:
        self.requests: list[EngineRequest] = []
        self.any_flag = 0  # the flags that some row has
        self._columns = np.zeros((10, 0), np.int64)
        self._outputs = np.zeros((0, 2, 16), np.int32)
        self.stop_ids = np.zeros((0, 1), np.int64)  # [capacity, stops], filled up with NO_TOKEN
        self.routes = RowRoutes()
        self._bind()

    def _bind(self) -> None:
        """Name the columns."""
        self.last = self._columns[0]  # the newest token, not yet in the cache
        self.length = self._columns[1]  # positions in the cache
        self.count_out = self._columns[2]  # output tokens
        self.limit = self._columns[3]  # max_new_tokens
        self.noise = self._columns[4].view(np.uint64)  # its seed, mixed (sampling.py)
        self.top_k = self._columns[5]
        self.flags = self._columns[6]
        self.temperature, self.top_p, self.min_p = self._columns[7:].view(np.float64)
        self.tokens = self._outputs[:, 0]  # [capacity, outputs]
        self.logprobs = self._outputs[:, 1].view(np.float32)  # [capacity, outputs]
        self._every = np.arange(len(self.last))

    @property
    def count(self) -> int:
        return len(self.requests)

    def flagged(self, flag: int) -> npt.NDArray[np.int64]:
        """The rows that have ``flag``."""
        return np.flatnonzero(self.flags[: self.count] & flag)

    def add(self, requests: list[EngineRequest]) -> None:
        """Append rows, with the output their requests bring along from before a retraction."""
        first, count = self.count, self.count + len(requests)
        self._reserve(
            count,
            stops=max(len(request.stop_ids) for request in requests),
            outputs=max(len(request.output) for request in requests) + 1,
        )
        self.requests.extend(requests)
        self._columns[:7, first:count] = np.array([_ints(request) for request in requests], np.int64).T
        floats = np.array([_FLOATS(request.item.sampling) for request in requests], np.float64)
        self._columns[7:, first:count] = floats.T.view(np.int64)
        self.any_flag |= int(np.bitwise_or.reduce(self.flags[first:count]))
        self.stop_ids[first:count] = NO_TOKEN
        alike = len({request.stop_ids for request in requests}) == 1
        if alike:
            self.stop_ids[first:count, : len(requests[0].stop_ids)] = list(requests[0].stop_ids)
        for row, request in enumerate(requests, first):
            request.row = row
            if not alike:
                self.stop_ids[row, : len(request.stop_ids)] = list(request.stop_ids)
            if request.output:
                self.tokens[row, : len(request.output)] = request.output
                self.logprobs[row, : len(request.output)] = request.logprobs
            if request.routes is not None:
                self.routes.put(row, 0, request.routes)
        self.noise[first:count] = mixed(self.noise[first:count])

    def append(self, tokens: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Give every row one more token. True for a row that this token ends by id or by length."""
        n = self.count
        at, index = self.count_out[:n], self._every[:n]
        width = int(at.max()) + 1
        if width > self.tokens.shape[1]:
            self._widen(max(width, 2 * self.tokens.shape[1]))
        self.tokens[index, at] = tokens
        self.logprobs[index, at] = logprobs
        at += 1
        self.last[:n] = tokens
        return (self.stop_ids[:n] == tokens[:, None]).any(1) | (at >= self.limit[:n])

    def keep_routes(self, newest: Routes, batch: list[EngineRequest], source: list[int], prompts: Routes) -> None:
        """What a pass chose: for the newest token of each of the first rows ``[rows, layers, top_k]``, and for the prompts that
        it computed ``[prompts, width, layers, top_k]``, of which request ``i`` of ``batch`` has number ``source[i]``.

        What is known of a request from before a retraction stays.
        """
        for request, place in zip(batch, source, strict=True):
            if request.item.routes_from >= 0:
                known = 0 if request.routes is None else len(request.routes)
                self.routes.put(request.row, known, prompts[place, known : request.length - 1])
        if len(newest):
            self.routes.put_one_each(self.length[: len(newest)], newest)

    def save_outputs(self, rows: npt.NDArray[np.int64]) -> None:
        """Copy the output of rows into their requests."""
        # max_new_tokens = 0: a token was sampled that nobody asked for
        counts = np.minimum(self.count_out[rows], self.limit[rows])
        width = int(counts.max(initial=0))
        tokens, logprobs = self.tokens[rows, :width].tolist(), self.logprobs[rows, :width].tolist()
        for row, n, some_tokens, some_logprobs in zip(rows.tolist(), counts.tolist(), tokens, logprobs, strict=True):
            request = self.requests[row]
            request.output = some_tokens[:n]
            request.logprobs = some_logprobs[:n]
            if request.item.routes_from >= 0:
                request.routes = self.routes.of(row, request.length - 1)

    def remove(self, leaving: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Take rows out (sorted), filling the holes from the end. Returns (moved from, moved to)."""
        kept, gone = self.count - len(leaving), leaving.tolist()
        behind = set(gone)
        sources = np.array([row for row in range(kept, self.count) if row not in behind], np.int64)
        targets = leaving[: len(sources)]
        for row in gone:
            self.requests[row].row = -1
        if len(targets):
            self._columns[:, targets] = self._columns[:, sources]
            width = int(self.count_out[targets].max())
            self._outputs[targets, :, :width] = self._outputs[sources, :, :width]
            self.stop_ids[targets] = self.stop_ids[sources]
            if self.any_flag & ROUTED:
                self.routes.move(sources, targets, int(self.length[targets].max()))
            for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
                request = self.requests[source]
                self.requests[target] = request
                request.row = target
        del self.requests[kept:]
        if self.any_flag:
            self.any_flag = int(np.bitwise_or.reduce(self.flags[:kept]))
        return sources, targets

    def _reserve(self, count: int, *, stops: int, outputs: int) -> None:
        size = len(self.last)
        if count > size:
            extra = max(count, 2 * size, 16) - size
            self._columns = np.pad(self._columns, ((0, 0), (0, extra)))
            self.stop_ids = np.pad(self.stop_ids, ((0, extra), (0, 0)))
            self._outputs = np.pad(self._outputs, ((0, extra), (0, 0), (0, 0)))
            self._bind()
        if stops > self.stop_ids.shape[1]:
            more = stops - self.stop_ids.shape[1]
            self.stop_ids = np.pad(self.stop_ids, ((0, 0), (0, more)), constant_values=NO_TOKEN)
        if outputs > self.tokens.shape[1]:
            self._widen(max(outputs, 2 * self.tokens.shape[1]))

    def _widen(self, width: int) -> None:
        self._outputs = np.pad(self._outputs, ((0, 0), (0, 0), (0, width - self.tokens.shape[1])))
        self._bind()


def _ints(request: EngineRequest) -> tuple[int, ...]:
    """The columns up to ``flags``."""
    sampling = request.item.sampling
    filtered = sampling.top_k < NO_TOP_K or sampling.top_p < 1.0 or sampling.min_p > 0.0
    flags = (
        (GREEDY if sampling.greedy else FILTERED if filtered else 0)
        | (WATCHED if request.stream or sampling.stop else 0)
        | (BIASED if sampling.logit_bias else 0)
        | (TEMPERED if sampling.temperature != 1.0 else 0)
        | (ROUTED if request.item.routes_from >= 0 else 0)
    )
    return (
        (request.output or request.item.prompt)[-1],
        request.length - 1,  # the newest token enters the cache with the next step
        len(request.output),
        request.limit,
        request.seed,
        sampling.top_k,
        flags,
    )
