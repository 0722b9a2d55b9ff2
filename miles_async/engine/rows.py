"""The running batch as arrays: row ``i`` is one running request, with its counters, parameters and output so far.

Promises: rows in use are the first ``count``; adding, advancing and removing rows costs a few array operations however many
rows there are (Python work is paid for each request, not for each token). Host memory only; no model, no I/O.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miles_async.engine.request import Request

NO_TOKEN = -1


class Rows:
    """Arrays over the running requests; every array's first axis is the row."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.last = np.zeros(0, np.int64)  # the newest token, not yet in the cache
        self.length = np.zeros(0, np.int64)  # positions in the cache
        self.count_out = np.zeros(0, np.int64)
        self.limit = np.zeros(0, np.int64)  # max_new_tokens
        self.seed = np.zeros(0, np.uint64)
        self.temperature = np.zeros(0, np.float32)
        self.greedy = np.zeros(0, np.bool_)
        self.filtered = np.zeros(0, np.bool_)  # wants top-k, top-p or min-p
        self.biased = np.zeros(0, np.bool_)  # has a logit_bias
        self.watched = np.zeros(0, np.bool_)  # streams, or has stop strings: looked at after every token
        self.top_k = np.zeros(0, np.int64)
        self.top_p = np.zeros(0, np.float32)
        self.min_p = np.zeros(0, np.float32)
        self.stop_ids = np.zeros((0, 1), np.int64)
        self.tokens = np.zeros((0, 16), np.int32)
        self.logprobs = np.zeros((0, 16), np.float32)
        self._arrays = [name for name, value in vars(self).items() if isinstance(value, np.ndarray)]

    @property
    def count(self) -> int:
        return len(self.requests)

    def add(self, requests: list[Request]) -> None:
        """Append rows, with the output their requests bring along (from before a retraction)."""
        first, count = self.count, self.count + len(requests)
        self._reserve(
            count,
            stops=max(len(request.stop_ids) for request in requests),
            outputs=max(len(request.output) for request in requests) + 1,
        )
        self.requests.extend(requests)
        for row, request in enumerate(requests, first):
            sampling = request.item.sampling
            request.row = row
            self.length[row] = len(request.item.prompt) + len(request.output)
            self.count_out[row] = len(request.output)
            self.limit[row] = request.limit
            self.seed[row] = request.seed
            self.temperature[row] = sampling.temperature
            self.greedy[row] = sampling.greedy
            self.top_k[row], self.top_p[row], self.min_p[row] = sampling.top_k, sampling.top_p, sampling.min_p
            self.filtered[row] = not sampling.greedy and (
                sampling.top_k < (1 << 30) or sampling.top_p < 1.0 or sampling.min_p > 0.0
            )
            self.biased[row] = sampling.logit_bias is not None
            self.watched[row] = request.stream or bool(sampling.stop)
            self.stop_ids[row] = NO_TOKEN
            if request.stop_ids:
                self.stop_ids[row, : len(request.stop_ids)] = list(request.stop_ids)
            if request.output:
                self.tokens[row, : len(request.output)] = request.output
                self.logprobs[row, : len(request.output)] = request.logprobs

    def append(
        self, first: int, tokens: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Give rows ``first``... one more token each. True for a row that this token ends by id or by length."""
        rows = slice(first, first + len(tokens))
        at = self.count_out[rows]
        width = int(at.max()) + 1
        if width > self.tokens.shape[1]:
            self._widen(max(width, 2 * self.tokens.shape[1]))
        index = np.arange(first, first + len(tokens))
        self.tokens[index, at] = tokens
        self.logprobs[index, at] = logprobs
        self.count_out[rows] += 1
        self.last[rows] = tokens
        return (self.stop_ids[rows] == tokens[:, None]).any(1) | (self.count_out[rows] >= self.limit[rows])

    def save_output(self, row: int) -> None:
        """Copy a row's output into its request."""
        request, n = self.requests[row], int(self.count_out[row])
        n = min(n, request.limit)  # max_new_tokens = 0: the prefill samples a token nobody asked for
        request.output = self.tokens[row, :n].tolist()
        request.logprobs = self.logprobs[row, :n].tolist()

    def remove(self, leaving: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Take rows out (sorted indices), filling the holes from the end: (moved from, moved to)."""
        kept = self.count - len(leaving)
        for row in leaving.tolist():
            self.requests[row].row = -1
        targets = leaving[leaving < kept]
        sources = np.setdiff1d(np.arange(kept, self.count), leaving, assume_unique=True)
        if len(targets):
            for name in self._arrays:
                array = getattr(self, name)
                array[targets] = array[sources]
            for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
                request = self.requests[source]
                self.requests[target] = request
                request.row = target
        del self.requests[kept:]
        return sources, targets

    def _reserve(self, count: int, *, stops: int, outputs: int) -> None:
        size = len(self.last)
        if count > size:
            size = max(count, 2 * size, 16)
            for name in self._arrays:
                array = getattr(self, name)
                grown = np.zeros((size, *array.shape[1:]), array.dtype)
                grown[: len(array)] = array
                setattr(self, name, grown)
        if stops > self.stop_ids.shape[1]:
            grown = np.full((size, stops), NO_TOKEN, np.int64)
            grown[:, : self.stop_ids.shape[1]] = self.stop_ids
            self.stop_ids = grown
        if outputs > self.tokens.shape[1]:
            self._widen(max(outputs, 2 * self.tokens.shape[1]))

    def _widen(self, width: int) -> None:
        for name in ("tokens", "logprobs"):
            array = getattr(self, name)
            grown = np.zeros((array.shape[0], width), array.dtype)
            grown[:, : array.shape[1]] = array
            setattr(self, name, grown)
