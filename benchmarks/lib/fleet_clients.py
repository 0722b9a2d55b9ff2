"""Clients of a fleet of synthetic engines: each request is sent, and its answer held against what follows from it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp
import msgspec

from benchmarks.lib.synthetic.batch import Latency, Lengths, logprob_of, response
from benchmarks.lib.synthetic_engine import NAME_HEADER
from miles_async.config.schema import Router as RouterConfig

PROMPT = [5] * 32


class Size(NamedTuple):
    """Of one load. Times in seconds."""

    engines: int = 64
    requests: int = 10_000
    clients: int = 512
    lengths: Lengths = Lengths(64, 1.4)
    longest: int = 1024  # tokens
    latency: Latency = Latency()
    update_every_s: float = 4.0
    update_s: float = 0.2
    waves: int = 4
    death_every_s: float = 3.0
    away_s: float = 4.0
    max_retries: int = RouterConfig().max_retries
    seed: int = 1


class Seen(NamedTuple):
    """What a client got for one request."""

    seconds: float
    engine: str
    spans: list[tuple[str, int, int]]


@dataclass
class Outcome:
    """Of all clients."""

    seen: dict[str, Seen] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)  # request -> what came in the place of its answer
    wrong: dict[str, str] = field(default_factory=dict)  # request -> what its answer says that is not true


def body_of(number: int, longest: int) -> bytes:
    sampling = {"max_new_tokens": longest, "sampling_seed": number}
    body = {"rid": f"r{number}", "input_ids": PROMPT, "sampling_params": sampling, "return_logprob": True}
    return msgspec.json.encode(body)


def untruth(answer: dict[str, Any], number: int, size: Size) -> str:
    """What an answer says that does not follow from its request, or from itself; empty if all does."""
    meta = answer["meta_info"]
    if meta["id"] != f"r{number}" or answer["output_ids"] != response(number, size.lengths, size.longest, 1024):
        return f"the answer of {meta['id']}, {len(answer['output_ids'])} tokens"
    logprobs = [entry[0] for entry in meta["output_token_logprobs"]]
    at = 0
    for span in meta["weight_versions"]:
        if span["start"] != at or span["end"] <= at:
            return f"spans {meta['weight_versions']}"
        at = span["end"]
        if set(logprobs[span["start"] : at]) != {logprob_of(span["version"])}:
            return f"tokens of other weights in {span}"
    return "" if at == len(answer["output_ids"]) else f"{at} of {len(answer['output_ids'])} tokens have a version"


async def ask(session: aiohttp.ClientSession, url: str, number: int, size: Size, outcome: Outcome) -> None:
    rid, began = f"r{number}", time.perf_counter()
    try:
        async with session.post(url + "/generate", data=body_of(number, size.longest)) as got:
            content, status = await got.read(), got.status
            engine = got.headers.get(NAME_HEADER.decode(), "")
    except aiohttp.ClientError as error:
        outcome.lost[rid] = f"{type(error).__name__}: {error}"
        return
    if status != 200:
        outcome.lost[rid] = f"HTTP {status}: {content[:200]!r}"
        return
    answer = msgspec.json.decode(content)
    if wrong := untruth(answer, number, size):
        outcome.wrong[rid] = wrong
    spans = [(span["version"], span["start"], span["end"]) for span in answer["meta_info"]["weight_versions"]]
    outcome.seen[rid] = Seen(time.perf_counter() - began, engine, spans)
