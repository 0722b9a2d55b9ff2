"""Continuous batching on one model: who runs, one token for each of them, who leaves.

```
 submit ─► waiting ──(room: rows, cache)──► prefill ─► running rows ──token──► finished
              ▲                                            │
              └──────────── retract: output kept, cache dropped
```

Promises: requests join and leave at every token; admission is in order of arrival; equal prompts admitted together are
computed once; a request's version spans name the weights that sampled each token; while paused nothing is sampled. Pure
computation: no thread, no clock, no network; the compute thread calls ``step`` and hands out what it returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from miles_async.engine.cache import KVCache, align
from miles_async.engine.model import DenseModel
from miles_async.engine.request import Request, abort_reason, length_reason, stop_reason
from miles_async.engine.rows import Rows
from miles_async.engine.sampling import Filters, sample, uniforms
from miles_async.engine.text import TextCodec

PauseMode = Literal["abort", "retract", "in_place"]
MAX_PREFILL_TOKENS = 16384  # padded tokens of one prefill pass; bounds its memory


class Partial(NamedTuple):
    """Output so far of a request that streams."""

    request: Request
    output: list[int]
    logprobs: list[float]


class StepOutput(NamedTuple):
    """What a step gave: requests that are finished, and progress of streaming ones."""

    finished: list[Request]
    partial: list[Partial]


class Scheduler:
    """The engine's state machine. Not thread-safe: one thread calls it."""

    def __init__(
        self, model: DenseModel, codec: TextCodec, *, max_running: int, max_tokens: int, version: str = "default"
    ) -> None:
        cfg = model.config
        self.model = model
        self.codec = codec
        self.max_running = max_running
        self.version = version
        self.paused = False
        self.waiting: deque[Request] = deque()
        self.rows = Rows()
        self.cache = KVCache(
            cfg.num_layers,
            cfg.num_kv_heads,
            cfg.head_dim,
            dtype=model.dtype,
            device=model.device,
            max_tokens=max_tokens,
        )
        self.generated_tokens = 0
        self._out = StepOutput([], [])

    @property
    def runnable(self) -> bool:
        """Whether ``step`` has something to do."""
        return not self.paused and bool(self.waiting or self.rows.requests)

    @property
    def idle(self) -> bool:
        """No request anywhere."""
        return not self.waiting and not self.rows.requests

    # -- commands -----------------------------------------------------------------------------------------------

    def submit(self, requests: Iterable[Request]) -> None:
        self.waiting.extend(requests)

    def abort(self, victims: Iterable[Request]) -> list[Request]:
        """End live requests now, with the output they have. Returns those that were live."""
        victims = [request for request in victims if request.finish is None]
        running = [request for request in victims if request.row >= 0]
        queued = {id(request) for request in victims if request.row < 0}
        for request in running:
            self.rows.save_output(request.row)
            request.finish = abort_reason("Aborted")
        self._drop_rows(np.array(sorted(request.row for request in running), np.int64))
        if queued:
            self.waiting = deque(request for request in self.waiting if id(request) not in queued)
        for request in victims:
            request.finish = request.finish or abort_reason("Abort in waiting queue")
            request.version = self.version
        return victims

    def pause(self, mode: PauseMode) -> list[Request]:
        """Stop sampling until :meth:`resume`. Returns the requests that ``abort`` ended."""
        self.paused = True
        if mode == "retract":
            self._retract(self.rows.count)
        return self.abort([*self.rows.requests, *self.waiting]) if mode == "abort" else []

    def resume(self) -> None:
        self.paused = False

    def flush(self) -> bool:
        """Drop the cache. False, and nothing done, while requests hold it or (not paused) wait for it."""
        if self.rows.requests or (self.waiting and not self.paused):
            return False
        self.cache.release()
        return True

    def set_version(self, version: str) -> None:
        """The weights are ``version`` from the next token on."""
        if version == self.version:
            return
        for request in self.waiting:
            if request.output:
                request.version_events.append((self.version, len(request.output)))
        for row, request in enumerate(self.rows.requests):
            request.version_events.append((self.version, int(self.rows.count_out[row])))
        self.version = version

    # -- one step -----------------------------------------------------------------------------------------------

    def step(self) -> StepOutput:
        """Admit what fits, then one more token for every running request."""
        self._out = StepOutput([], [])
        if self.waiting:
            for batch in self._admit():
                self._prefill(batch)
        if self.rows.requests:
            self._decode()
        return self._out

    def _admit(self) -> list[list[Request]]:
        """Take requests off the queue while rows and cache last; batches of similar length, bounded in tokens."""
        admitted: list[Request] = []
        count = self.rows.count
        longest = int(self.rows.length[:count].max()) if count else 0
        while self.waiting and count < self.max_running:
            need = max(longest, len(self.waiting[0].item.prompt) + len(self.waiting[0].output)) + 1
            if not self.cache.fits(count + 1, need):
                break
            admitted.append(self.waiting.popleft())
            longest, count = need - 1, count + 1
        if not admitted:
            return []
        self.cache.reserve(count, longest + 1, self.rows.count)
        admitted.sort(key=lambda request: len(request.item.prompt) + len(request.output))
        batches: list[list[Request]] = [[]]
        for request in admitted:
            length = len(request.item.prompt) + len(request.output)
            if batches[-1] and (len(batches[-1]) + 1) * length > MAX_PREFILL_TOKENS:
                batches.append([])
            batches[-1].append(request)
        return batches

    def _prefill(self, batch: list[Request]) -> None:
        """Run prompts (and kept output) through the model and sample the next token of each request."""
        unique: dict[tuple[int, ...], int] = {}
        source = [unique.setdefault(tuple(request.tokens()), len(unique)) for request in batch]
        width = max(map(len, unique))
        ids = np.zeros((len(unique), width), np.int64)
        for index, tokens in enumerate(unique):
            ids[index, : len(tokens)] = tokens
        first = self.rows.count
        self.rows.add(batch)
        sources = self._to_device(np.array(source))
        hidden = self.model.prefill(
            self._to_device(ids), self.cache, torch.arange(first, self.rows.count, device=self.model.device), sources
        )
        last = self._to_device(self.rows.length[first : self.rows.count] - 1)
        self._score_prompts(batch, source, ids, hidden)
        self._sample(first, self.model.logits(hidden[sources, last]))

    def _decode(self) -> None:
        """One token for every row; the youngest go back to the queue if the cache cannot grow."""
        while True:
            n = self.rows.count
            need = int(self.rows.length[:n].max()) + 1
            if self.cache.fits(n, need) or n == 1:
                break
            self._retract(1)
        self.cache.reserve(n, need, n)
        logits = self.model.decode(
            self._to_device(self.rows.last[:n]),
            self._to_device(self.rows.length[:n]),
            self.cache,
            min(align(need), self.cache.length),
        )
        self.rows.length[:n] += 1
        self._sample(0, logits)

    def _sample(self, first: int, logits: torch.Tensor) -> None:
        """Draw for rows ``first``..., note what ends, and let it leave."""
        rows = slice(first, self.rows.count)
        data = self.rows
        noise = uniforms(data.seed[rows], data.count_out[rows])
        with torch.inference_mode():
            for row in np.flatnonzero(data.biased[rows]).tolist():
                bias = data.requests[first + row].item.sampling.logit_bias or {}
                logits[row, list(bias)] += torch.tensor(list(bias.values()), device=logits.device)
            tokens, logprobs = sample(
                logits,
                self._to_device(data.temperature[rows]),
                self._to_device(noise),
                self._to_device(data.greedy[rows]) if data.greedy[rows].any() else None,
                self._filters(rows),
            )
            ended = data.append(first, tokens.cpu().numpy(), logprobs.cpu().numpy())
        self.generated_tokens += len(ended)
        for row in (np.flatnonzero(data.watched[rows]) + first).tolist():
            self._watch(row, first, ended)
        leaving = np.flatnonzero(ended) + first
        for row in leaving.tolist():
            self._finish(row)
        self._drop_rows(leaving)

    def _watch(self, row: int, first: int, ended: npt.NDArray[np.bool_]) -> None:
        """A row that is looked at after every token: stop strings, and progress for a stream."""
        request, n = self.rows.requests[row], int(self.rows.count_out[row])
        if request.item.sampling.stop:
            tail = self.rows.tokens[row, max(0, n - request.stop_window) : n].tolist()
            matched = self.codec.matched_stop(tail, request.item.sampling)
            if matched is not None:
                request.finish = stop_reason(matched)
                ended[row - first] = True
        if request.stream and not ended[row - first]:
            output = self.rows.tokens[row, :n].tolist()
            request.version = self.version
            self._out.partial.append(Partial(request, output, self.rows.logprobs[row, :n].tolist()))

    def _finish(self, row: int) -> None:
        """Fill in how a row ended (stop string before stop token before length, as SGLang) and save its output."""
        request = self.rows.requests[row]
        self.rows.save_output(row)
        if request.finish is None:
            last = request.output[-1] if request.output else None
            request.finish = stop_reason(last) if last in request.stop_ids else length_reason(request.limit)
        request.version = self.version
        self._out.finished.append(request)

    # -- helpers ------------------------------------------------------------------------------------------------

    def _retract(self, count: int) -> None:
        """Send the last ``count`` rows to the head of the queue: output kept, cache dropped."""
        if count <= 0:
            return
        first = self.rows.count - count
        victims = self.rows.requests[first:]
        for row, request in enumerate(victims, first):
            self.rows.save_output(row)
            request.retractions += 1
        self._drop_rows(np.arange(first, self.rows.count))
        self.waiting.extendleft(sorted(victims, key=lambda request: request.received, reverse=True))

    def _drop_rows(self, leaving: npt.NDArray[np.int64]) -> None:
        if not len(leaving):
            return
        sources, targets = self.rows.remove(leaving)
        if len(sources):
            longest = int(self.rows.length[targets].max())
            with torch.inference_mode():
                self.cache.move(self._to_device(sources), self._to_device(targets), longest)

    def _filters(self, rows: slice) -> Filters | None:
        data = self.rows
        if not data.filtered[rows].any():
            return None
        chosen = np.flatnonzero(data.filtered[rows])
        return Filters(
            self._to_device(chosen),
            self._to_device(data.top_k[rows][chosen]),
            self._to_device(data.top_p[rows][chosen]),
            self._to_device(data.min_p[rows][chosen]),
        )

    @torch.inference_mode()
    def _score_prompts(
        self, batch: list[Request], source: list[int], ids: npt.NDArray[np.int64], hidden: torch.Tensor
    ) -> None:
        """Log-probs of prompt tokens (temperature 1), for the requests that want them; once, at the first prefill."""
        for index, request in zip(source, batch, strict=True):
            start, end = request.item.logprob_start_len, len(request.item.prompt)
            if start < 0 or request.input_logprobs is not None:
                continue
            scores = torch.log_softmax(self.model.logits(hidden[index, start : end - 1]), -1)
            targets = self._to_device(ids[index, start + 1 : end])
            values = scores.gather(1, targets[:, None])[:, 0].tolist() if end - start > 1 else []
            request.input_logprobs = [None, *values] if end > start else []

    def _to_device(self, array: npt.NDArray) -> torch.Tensor:
        """A tensor of the array's values; on a CPU it may share memory, so it must not outlive the step."""
        return torch.from_numpy(array).to(self.model.device, non_blocking=True)
