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
from operator import attrgetter
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from miles_async.engines.embedded.cache import KVCache, align
from miles_async.engines.embedded.model import Decoder
from miles_async.engines.embedded.prompts import Prompts, padded, score, wants_scores
from miles_async.engines.embedded.request import EngineRequest, abort_reason, length_reason, stop_reason
from miles_async.engines.embedded.routes import RowRoutes, packed
from miles_async.engines.embedded.rows import BIASED, FILTERED, GREEDY, ROUTED, TEMPERED, WATCHED, Rows
from miles_async.engines.embedded.sampling import Filters, sample, uniforms_of
from miles_async.engines.embedded.step_output import Partial, StepOutput
from miles_async.engines.embedded.text import TextCodec

PauseMode = Literal["abort", "retract", "in_place"]
MAX_PREFILL_TOKENS = 16384  # padded tokens of one prefill pass; bounds its memory


class Scheduler:
    """The engine's state machine. Not thread-safe: one thread calls it."""

    def __init__(
        self, model: Decoder, codec: TextCodec, *, max_running: int, max_tokens: int, version: str = "default"
    ) -> None:
        cfg = model.config
        self.model = model
        self.codec = codec
        self.max_running = max_running
        self.version = version
        self.paused = False
        self.waiting: deque[EngineRequest] = deque()
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
        self._on_cpu = model.device.type == "cpu"
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

    def submit(self, requests: Iterable[EngineRequest]) -> None:
        self.waiting.extend(requests)

    @torch.inference_mode()
    def abort(self, victims: Iterable[EngineRequest]) -> list[EngineRequest]:
        """End live requests now, with the output they have. Returns those that were live."""
        victims = [request for request in victims if request.finish is None]
        running = [request for request in victims if request.row >= 0]
        queued = {id(request) for request in victims if request.row < 0}
        if running:
            leaving = np.array(sorted(request.row for request in running), np.int64)
            self.rows.save_outputs(leaving)
            self._drop_rows(leaving)
            for request in running:
                request.finish = abort_reason("Aborted")
        if queued:
            self.waiting = deque(request for request in self.waiting if id(request) not in queued)
        for request in victims:
            request.finish = request.finish or abort_reason("Abort in waiting queue")
            request.version = self.version
        return victims

    @torch.inference_mode()
    def pause(self, mode: PauseMode) -> list[EngineRequest]:
        """Stop sampling until :meth:`resume`. Returns the requests that ``abort`` ended."""
        self.paused = True
        if mode == "retract":
            self._retract(self.rows.count)
        return self.abort([*self.rows.requests, *self.waiting]) if mode == "abort" else []

    def resume(self) -> None:
        self.paused = False

    def flush(self) -> bool:
        """Drop the cache, and routes' memory. False, and nothing done, while requests hold it or (not paused) wait for it."""
        if self.rows.requests or (self.waiting and not self.paused):
            return False
        self.cache.release()
        self.rows.routes = RowRoutes()
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

    @torch.inference_mode()
    def step(self) -> StepOutput:
        """Admit what fits, then one more token for every running request, in the same pass as the last prompts."""
        self._out = StepOutput([], [])
        batches = self._admit() if self.waiting else []
        begun = [request for batch in batches for request in batch if not request.output]
        for batch in batches[:-1]:
            self._forward(batch, decode=False)
        if batches or self.rows.requests:
            self._decode(batches[-1] if batches else [])
        return self._out._replace(begun=begun)

    def _admit(self) -> list[list[EngineRequest]]:
        """Take requests off the queue while rows and cache last; batches of similar length, bounded in tokens."""
        admitted: list[EngineRequest] = []
        count = self.rows.count
        longest = int(self.rows.length[:count].max(initial=0)) + 1
        while self.waiting and count < self.max_running:
            longest = max(longest, self.waiting[0].length)
            if not self.cache.fits(count + 1, longest):
                break
            admitted.append(self.waiting.popleft())
            count += 1
        if not admitted:
            return []
        self.cache.reserve(count, longest, self.rows.count)
        admitted.sort(key=attrgetter("length"))
        batches: list[list[EngineRequest]] = []
        shortest = size = 0
        for request in admitted:
            length = request.length
            if not batches or (size + 1) * length > MAX_PREFILL_TOKENS or length > 2 * shortest + 16:
                batches.append([])
                shortest, size = length, 0
            batches[-1].append(request)
            size += 1
        return batches

    def _decode(self, batch: list[EngineRequest]) -> None:
        """One token for every row, those of ``batch`` included; some go back to the queue if the cache cannot grow."""
        logits = self._forward(batch, decode=True)
        self.rows.length[: self.rows.count] += 1
        ended = self._sample(logits, self.rows.any_flag)
        if len(leaving := np.flatnonzero(ended)):
            self._finish(leaving)

    def _forward(self, batch: list[EngineRequest], *, decode: bool) -> torch.Tensor:
        """Fill the cache for all but the newest token of each request of ``batch``; with ``decode`` that one of every row."""
        data, first = self.rows, self.rows.count
        tokens, source = padded(batch)
        width = tokens.shape[1]
        if batch:
            data.add(batch)
        n, need = self._reserve() if decode else (0, width)
        ids, positions, prompts = data.last[:n], data.length[:n], None
        scored = [request for request in batch if wants_scores(request)]
        routed = bool(data.any_flag & ROUTED and n + width)
        if width:
            ids = np.concatenate((ids, tokens.ravel()))
            positions = np.concatenate((positions, np.tile(np.arange(width), len(tokens))))
            prompts = Prompts(first, self._to_device(np.array(source)), width, bool(scored) or routed)
        length = min(align(need), self.cache.length)
        logits, hidden = torch.empty(0, 0), None
        if n + width:  # else they are prompts of one token: the pass that samples is their first
            inputs = self._to_device(ids), self._to_device(positions)
            logits, hidden = self.model.forward(*inputs, self.cache, n, length, prompts)
        if routed:
            routes = packed(self.model.routes().cpu().numpy(), self.model.mixtures[0].experts)
            data.keep_routes(routes[:n], batch, source, routes[n:].reshape(*tokens.shape, *routes.shape[1:]))
        for request in scored:
            start, end = request.item.logprob_start_len, len(request.item.prompt) - 1
            places = hidden[source[request.row - first], start:end] if hidden is not None else logits.new_empty(0, 0)
            score(request, self.model.logits(places) if len(places) else places)
        return logits

    def _reserve(self) -> tuple[int, int]:
        """Room for one more position of every row; the last ones give way. Returns how many rows, how many positions."""
        while True:
            n = self.rows.count
            need = int(self.rows.length[:n].max()) + 1
            if self.cache.fits(n, need) or n == 1:
                self.cache.reserve(n, need, n)
                return n, need
            self._retract(1)

    def _sample(self, logits: torch.Tensor, flags: int) -> npt.NDArray[np.bool_]:
        """Draw the next token of every row. Returns which rows it ends."""
        data, n = self.rows, self.rows.count
        if flags & BIASED:
            for row in data.flagged(BIASED).tolist():
                bias = data.requests[row].item.sampling.logit_bias or {}
                logits[row, list(bias)] += torch.tensor(list(bias.values()), device=logits.device)
        tokens, logprobs = sample(
            logits,
            self._to_device(data.temperature[:n].astype(np.float32)) if flags & TEMPERED else None,
            self._to_device(uniforms_of(data.noise[:n], data.count_out[:n])),
            self._to_device((data.flags[:n] & GREEDY) != 0) if flags & GREEDY else None,
            self._filters() if flags & FILTERED else None,
        )
        drawn = logprobs.cpu().numpy()
        ended = data.append(tokens.cpu().numpy(), drawn)
        self.generated_tokens += n
        if not np.isfinite(drawn).all():  # weights that have diverged: say so, and go on serving
            for row in np.flatnonzero(~np.isfinite(drawn)).tolist():
                message = f"weights {self.version} give no finite probabilities"
                data.requests[row].finish = abort_reason(message, 500)
                ended[row] = True
        if flags & WATCHED:
            for row in data.flagged(WATCHED).tolist():
                self._watch(row, ended)
        return ended

    def _watch(self, row: int, ended: npt.NDArray[np.bool_]) -> None:
        """A row that is looked at after every token: stop strings, and progress for a stream."""
        request, n = self.rows.requests[row], int(self.rows.count_out[row])
        if request.item.sampling.stop:
            tail = self.rows.tokens[row, max(0, n - request.stop_window) : n].tolist()
            matched = self.codec.matched_stop(tail, request.item.sampling)
            if matched is not None:
                request.finish = stop_reason(matched)
                ended[row] = True
        if request.stream and not ended[row]:
            output = self.rows.tokens[row, :n].tolist()
            request.version = self.version
            self._out.partial.append(Partial(request, output, self.rows.logprobs[row, :n].tolist()))

    def _finish(self, leaving: npt.NDArray[np.int64]) -> None:
        """Save how rows ended (stop string before stop token before length, as SGLang), and let them go."""
        self.rows.save_outputs(leaving)
        for row in leaving.tolist():
            request = self.rows.requests[row]
            if request.finish is None:
                stopped = bool(request.output) and request.output[-1] in request.stop_ids
                request.finish = stop_reason(request.output[-1]) if stopped else length_reason(request.limit)
            request.version = self.version
            self._out.finished.append(request)
        self._drop_rows(leaving)

    # -- helpers ------------------------------------------------------------------------------------------------

    def _retract(self, count: int) -> None:
        """Send the last ``count`` rows to the head of the queue: output kept, cache dropped."""
        if count <= 0:
            return
        leaving = np.arange(self.rows.count - count, self.rows.count)
        self.rows.save_outputs(leaving)
        victims = self.rows.requests[-count:]
        for request in victims:
            request.retractions += 1
        self._drop_rows(leaving)
        self.waiting.extendleft(sorted(victims, key=lambda request: request.received, reverse=True))

    def _drop_rows(self, leaving: npt.NDArray[np.int64]) -> None:
        sources, targets = self.rows.remove(leaving)
        if len(sources):
            where = self._to_device(sources), self._to_device(targets)
            self.cache.move(*where, int(self.rows.length[targets].max()))

    def _filters(self) -> Filters:
        data, chosen = self.rows, self.rows.flagged(FILTERED)
        return Filters(
            self._to_device(chosen),
            self._to_device(data.top_k[chosen]),
            self._to_device(data.top_p[chosen].astype(np.float32)),
            self._to_device(data.min_p[chosen].astype(np.float32)),
        )

    def _to_device(self, array: npt.NDArray) -> torch.Tensor:
        """A tensor of the array's values; on a CPU it may share memory, so it must not outlive the step."""
        tensor = torch.from_numpy(array)
        return tensor if self._on_cpu else tensor.to(self.model.device, non_blocking=True)
