"""One sequence on its way through the engine: what was asked, what was generated under which weights, how it ended.

Promises: the version spans are contiguous over the output tokens and name the weights that sampled each of them; the
rendered answer has SGLang's fields.
"""

from __future__ import annotations

import time
from itertools import repeat
from typing import Any

from miles_async.engines.embedded.protocol import Item
from miles_async.engines.embedded.routes import Routes, base64_of
from miles_async.engines.embedded.text import TextCodec


class EngineRequest:
    """State of one sequence. The compute thread owns it until ``finish`` is set; then it no longer changes."""

    __slots__ = (
        "began",
        "finish",
        "input_logprobs",
        "input_top",
        "item",
        "job",
        "limit",
        "logprobs",
        "output",
        "received",
        "retractions",
        "routes",
        "row",
        "seed",
        "stop_ids",
        "stop_window",
        "stream",
        "version",
        "version_events",
    )

    def __init__(self, item: Item, seed: int, stop_ids: frozenset[int], *, stream: bool, stop_window: int = 0) -> None:
        self.item = item
        self.seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)  # its 64 bits, as a signed number
        self.stop_ids = stop_ids
        self.stop_window = stop_window  # how many last tokens a stop string can reach into
        self.stream = stream
        self.limit = item.sampling.max_new_tokens or 0
        self.job: Any = None  # whoever waits for it, on the event loop's side
        self.row = -1
        self.output: list[int] = []  # up to date when the request holds no row
        self.logprobs: list[float] = []
        self.input_logprobs: list[float | None] | None = None
        self.input_top: list[list[tuple[float, int, None]] | None] = []  # as input_logprobs, of the likeliest tokens
        self.routes: Routes | None = None  # of all tokens but the last, where they are asked for; as output
        self.version_events: list[tuple[str, int]] = []  # (weights in use until then, output tokens at that moment)
        self.version = ""
        self.retractions = 0
        self.received = time.time()
        self.began = 0.0  # when its first token was sampled
        self.finish: dict[str, Any] | None = None

    def tokens(self) -> list[int]:
        """Prompt and output so far: what a (re-)prefill runs over."""
        return self.item.prompt + self.output if self.output else self.item.prompt

    @property
    def length(self) -> int:
        """Tokens of prompt and output so far; counts the output only while the request holds no row."""
        return len(self.item.prompt) + len(self.output)


def version_spans(events: list[tuple[str, int]], current: str, length: int) -> list[dict[str, Any]]:
    """SGLang's spans: ``[{version, start, end}]`` over ``length`` output tokens; equal neighbours are one span."""
    if not events:
        return [{"version": current, "start": 0, "end": length}] if length else []
    spans: list[dict[str, Any]] = []
    for version, end in (*events, (current, length)):
        end = min(end, length)
        if spans and end <= spans[-1]["end"]:
            continue
        if spans and spans[-1]["version"] == version:
            spans[-1]["end"] = end
        elif end > 0:
            spans.append({"version": version, "start": spans[-1]["end"] if spans else 0, "end": end})
    return spans


def length_reason(length: int) -> dict[str, Any]:
    return {"type": "length", "length": length}


def stop_reason(matched: int | str) -> dict[str, Any]:
    return {"type": "stop", "matched": matched}


def abort_reason(message: str, status_code: int | None = None) -> dict[str, Any]:
    return {"type": "abort", "message": message, "status_code": status_code, "err_type": None}


def render(request: EngineRequest, codec: TextCodec) -> dict[str, Any]:
    """The answer for a finished request, ready for JSON."""
    answer = _render(request, request.output, request.logprobs, request.finish, codec)
    spans = version_spans(request.version_events, request.version, len(request.output))
    meta = answer["meta_info"]
    meta["weight_versions"] = spans
    meta["weight_version"] = spans[-1]["version"] if spans else request.version
    meta["e2e_latency"] = time.time() - request.received
    if request.began and request.output:
        meta["first_token_latency"] = request.began - request.received  # not SGLang's
    if request.routes is not None:
        meta["routed_experts"] = base64_of(request.routes, request.item.routes_from)
        meta["routed_experts_kept"] = True  # through retractions, unlike SGLang's
    return answer


def render_partial(
    request: EngineRequest, output: list[int], logprobs: list[float], codec: TextCodec
) -> dict[str, Any]:
    """One chunk of a stream: everything so far, no finish reason and no spans yet."""
    return _render(request, output, logprobs, None, codec)


def _render(
    request: EngineRequest, output: list[int], logprobs: list[float], finish: dict[str, Any] | None, codec: TextCodec
) -> dict[str, Any]:
    item = request.item
    meta: dict[str, Any] = {
        "id": item.rid,
        "finish_reason": finish,
        "prompt_tokens": len(item.prompt),
        "weight_version": request.version,
        "num_retractions": request.retractions,
        "completion_tokens": len(output),
        "reasoning_tokens": 0,
        "cached_tokens": 0,
        "cached_tokens_details": None,
        "dp_rank": None,
    }
    if item.return_logprob:
        # zip, not a comprehension: this is the one part of an answer that grows with its tokens
        prompt = item.prompt[item.logprob_start_len :] if request.input_logprobs else []
        meta["input_token_logprobs"] = list(zip(request.input_logprobs or (), prompt, repeat(None)))
        if item.top_logprobs:
            meta["input_top_logprobs"] = request.input_top
        meta["output_token_logprobs"] = list(zip(logprobs, output, repeat(None)))
        meta["output_token_logprobs_length"] = len(output)
    return {"text": codec.answer(output, item.sampling, finish), "output_ids": output, "meta_info": meta}
