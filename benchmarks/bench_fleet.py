"""64 engines behind one router while they die, return and change versions; then engines that misbehave.

``load``: 10,000 requests with lengths from a heavy-tailed distribution, from 512 clients; an engine dies every few seconds on
average and comes back; a new version goes to all engines every few seconds, in waves, under a pause. Judged: each request has
one answer, the right one (its tokens follow from its seed), given by one engine once (the engines' own record; an answer that
an engine ended while it was given up, and that reached nobody, is ``generated_again``); its version spans are those of the
weights that sampled the tokens (their log-probs tell), and of weights that its engine served in that time (its record again).
Reported: max/mean of the engines' requests in flight, the router's memory, latency.

``misbehaviour``: 16 engines with the router's default configuration; one of each kind misbehaves at the same time. Reported:
seconds until it gets no requests, and from its better ways until it gets some again.

The engines are synthetic (``synthetic_engine.py``), in this process; the router is a process of its own. Seeded, as far as
clocks allow. ``miles-async bench fleet``; ``FLEET_SCALE=0.1`` for a tenth of the requests.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import uvloop

from benchmarks.synthetic.batch import Latency, Lengths, logprob_of, response
from benchmarks.synthetic.fleet import SyntheticFleet, duties, synthetic_fleet
from benchmarks.synthetic_engine import NAME_HEADER, Answered, Misbehaviour
from bus.messages import EngineDown, Event
from bus.server import RedisServer
from miles_async.config.schema import Router as RouterConfig

PROMPT = [5] * 32
SAMPLE_S = 0.25
FULL = 0.8  # of the clients have a request in flight: then the balance is looked at
SERIES = 20  # points of the memory that are reported
LATE_S = 2.0  # what an engine has written may lie unread for so long at a router that gives it up
SETTLED = 0.2  # of the time is over: from then on the memory is looked at


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


def judge(fleet: SyntheticFleet, outcome: Outcome, size: Size, given_up: list[tuple[str, float]]) -> dict[str, Any]:
    """The clients' side against the engines' own record. ``given_up``: of :meth:`SyntheticFleet.given_up`."""
    given: dict[str, list[tuple[str, Answered]]] = defaultdict(list)
    for name, member in fleet.members.items():
        for answered in member.engine.answered:
            given[answered.rid].append((name, answered))
    nowhere, twice, again, false_spans = [], {}, 0, {}
    for rid, seen in outcome.seen.items():
        right = [answered for name, answered in given[rid] if name == seen.engine]
        if not right:
            nowhere.append(rid)
            continue
        if not any(_served_in_turn(fleet, seen, answered) for answered in right):
            false_spans[rid] = f"{seen.spans} at {seen.engine}"
        # an answer that ended when its engine was given up did not arrive; the request was given to another one
        others = [(name, a) for name, a in given[rid] if name != seen.engine] + [(seen.engine, a) for a in right[1:]]
        for name, other in others:
            if any(who == name and other.began <= at <= other.ended + LATE_S for who, at in given_up):
                again += 1
            else:
                twice[rid] = f"{seen.engine}, and {name} from {other.began:.2f} to {other.ended:.2f}"
    latencies = sorted(seen.seconds for seen in outcome.seen.values())
    return {
        "requests": size.requests,
        "answered": len(outcome.seen),
        "lost": len(outcome.lost),
        "lost_examples": dict(itertools.islice(outcome.lost.items(), 5)),
        "answered_twice": len(twice),
        "generated_again": again,
        "answered_twice_examples": dict(itertools.islice(twice.items(), 5)),
        "answered_by_no_engine": len(nowhere),
        "false_answers": len(outcome.wrong),
        "false_answers_examples": dict(itertools.islice(outcome.wrong.items(), 5)),
        "false_versions": len(false_spans),
        "false_versions_examples": dict(itertools.islice(false_spans.items(), 5)),
        "answers_over_several_versions": sum(len(seen.spans) > 1 for seen in outcome.seen.values()),
        "tokens": sum(seen.spans[-1][2] for seen in outcome.seen.values()),
        "latency_s": {"p50": _at(latencies, 0.5), "p99": _at(latencies, 0.99), "max": _at(latencies, 1.0)},
    }


def _served_in_turn(fleet: SyntheticFleet, seen: Seen, answered: Answered) -> bool:
    """Whether the engine served the versions of the spans, in this order, while it had the request."""
    served = fleet.members[seen.engine].engine.served
    ends = [at for at, _ in served[1:]] + [float("inf")]
    during = iter(
        [v for (at, v), end in zip(served, ends, strict=True) if at <= answered.ended and end > answered.began]
    )
    return all(any(version == other for other in during) for version, _, _ in seen.spans)


class Samples:
    """The router's memory and its engines' requests in flight, while a load goes on."""

    def __init__(self, fleet: SyntheticFleet, session: aiohttp.ClientSession, clients: int) -> None:
        self._fleet, self._session, self._clients = fleet, session, clients
        self.rss_mb: list[float] = []
        self.ratios: list[float] = []  # of all engines that are up
        self.steady: list[float] = []  # of those that were up at the last look, too, and are not updated

    async def take(self) -> None:
        """Until cancelled."""
        before: set[str] = set()
        while True:
            await asyncio.sleep(SAMPLE_S)
            self.rss_mb.append(self._fleet.router.memory_info().rss / 1e6)
            workers = (await workers_of(self._fleet, self._session)).values()
            if sum(worker["inflight"] for worker in workers) >= FULL * self._clients:
                self.ratios.append(_max_to_mean([w["inflight"] for w in workers if w["state"] in ("up", "updating")]))
                up = {worker["id"] for worker in workers if worker["state"] == "up"}
                self.steady.append(_max_to_mean([w["inflight"] for w in workers if w["id"] in up & before]))
                before = up

    def report(self) -> dict[str, Any]:
        settled = self.rss_mb[int(SETTLED * len(self.rss_mb)) :]
        first, second = settled[: len(settled) // 2], settled[len(settled) // 2 :]
        return {
            "inflight_max_to_mean": _spread(self.ratios),
            "inflight_max_to_mean_without_updates_and_newcomers": _spread(self.steady),
            "router_rss_mb": {
                "start": _round(self.rss_mb[0]),
                "first_half": _round(statistics.mean(first)),
                "second_half": _round(statistics.mean(second)),
                "series": [_round(mb, 1) for mb in self.rss_mb[:: max(1, len(self.rss_mb) // SERIES)]],
                "growth_share": _round(statistics.mean(second) / statistics.mean(first) - 1, 4),
            },
        }


async def load(redis_url: str, size: Size) -> dict[str, Any]:
    """The figures of one load."""
    outcome, numbers = Outcome(), iter(range(size.requests))
    options: dict[str, Any] = {"latency": size.latency, "lengths": size.lengths, "update_s": size.update_s}
    timeout, router = aiohttp.ClientTimeout(total=None), RouterConfig(max_retries=size.max_retries)
    async with (
        synthetic_fleet(redis_url, size.engines, seed=size.seed, router=router, **options) as fleet,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session,
    ):
        samples = Samples(fleet, session, size.clients)
        await until(lambda up: len(up) == size.engines, fleet, session, "all engines to be up", 30.0)
        began = time.perf_counter()
        before = fleet.router.cpu_times()

        async def client() -> None:
            for number in numbers:
                await ask(session, fleet.router_url, number, size, outcome)

        async with duties(
            fleet.update_often(size.update_every_s, size.waves),
            fleet.kill_often(size.death_every_s, size.away_s),
            fleet.bring_back(),
            samples.take(),
        ):
            await asyncio.gather(*(client() for _ in range(size.clients)))
        seconds, after = time.perf_counter() - began, fleet.router.cpu_times()
        return {
            "engines": size.engines,
            "clients": size.clients,
            "seconds": _round(seconds),
            "deaths": len(fleet.deaths),
            "versions": fleet.updates,
            **judge(fleet, outcome, size, await fleet.given_up()),
            **samples.report(),
            "router_cpu_share": _round((after.user + after.system - before.user - before.system) / seconds),
        }


# ---- engines that misbehave -------------------------------------------------------------------------------------------

KINDS: tuple[Misbehaviour, ...] = ("slow", "stuck", "hung", "lying", "no_http", "no_json")


async def misbehaviour(redis_url: str, *, engines: int, router: RouterConfig, deadline_s: float, seed: int = 2) -> Any:
    """One engine of each kind at a time, all at once: when it gets no requests, and when it gets some again."""
    size = Size(engines=engines, clients=8 * engines, longest=512, seed=seed)
    outcome, numbers = Outcome(), itertools.count()
    options: dict[str, Any] = {"latency": size.latency, "lengths": size.lengths, "update_s": 0.0}
    async with (
        synthetic_fleet(redis_url, engines, seed=seed, router=router, **options) as fleet,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        await until(lambda up: len(up) == engines, fleet, session, "all engines to be up", 30.0)
        ill: dict[str, Misbehaviour] = {f"engine-{number}": how for number, how in enumerate(KINDS)}

        async def client() -> None:
            for number in numbers:
                await ask(session, fleet.router_url, number, size, outcome)

        async with duties(fleet.bring_back(), *(client() for _ in range(size.clients))):
            await asyncio.sleep(3 * router.suspect_interval_s)
            for name, how in ill.items():
                await fleet.members[name].engine.misbehave(how)
            out = await _watch(fleet, session, ill, lambda name, up: name not in up, deadline_s)
            for name in ill:
                await fleet.members[name].engine.misbehave(None)
            back = await _watch(fleet, session, ill, lambda name, up: name in up, deadline_s)
            events, _ = await fleet.bus.read("events", Event, "0", block_ms=1)
            downs, _ = await fleet.bus.read("weights", EngineDown, "0", block_ms=1)
    named: dict[str, list[str]] = defaultdict(list)
    for event in events:
        if event.kind == "engine_suspected":
            named[event.data["engine"]].append(f"{event.data['what']}: {event.data['why']}")
    for down in downs:
        if not named[down.engine]:  # by those who look after health, before it was a suspect
            named[down.engine].append(f"down: {down.reason}")
    return {
        "engines": engines,
        "router": {key: getattr(router, key) for key in ("suspect_interval_s", "slow_share", "slow_looks", "hung_s")},
        "kinds": {
            how: {"out_after_s": out.get(name), "named": named[name], "back_after_s": back.get(name)}
            for name, how in ill.items()
        },
        "others_named": {name: why for name, why in named.items() if name not in ill},
        "answered": len(outcome.seen),
        "lost": len(outcome.lost),
        "lost_examples": dict(itertools.islice(outcome.lost.items(), 5)),
        "false_answers": Counter(why.partition(" in ")[0] for why in outcome.wrong.values()),
    }


async def _watch(
    fleet: SyntheticFleet,
    session: aiohttp.ClientSession,
    names: Any,
    happened: Callable[[str, set[str]], bool],
    deadline_s: float,
) -> dict[str, float]:
    """Seconds until it happened to each engine, those left out to which it did not within ``deadline_s``."""
    began, after = time.perf_counter(), dict[str, float]()
    while len(after) < len(names) and time.perf_counter() - began < deadline_s:
        up = await up_of(fleet, session)
        for name in names:
            if name not in after and happened(name, up):
                after[name] = _round(time.perf_counter() - began, 1)
        await asyncio.sleep(0.05)
    return after


async def workers_of(fleet: SyntheticFleet, session: aiohttp.ClientSession) -> dict[str, dict[str, Any]]:
    async with session.get(fleet.router_url + "/workers") as answer:
        return {worker["id"]: worker for worker in (await answer.json())["workers"]}


async def up_of(fleet: SyntheticFleet, session: aiohttp.ClientSession) -> set[str]:
    found = await workers_of(fleet, session)
    return {name for name, worker in found.items() if worker["state"] in ("up", "updating")}


async def until(
    good: Callable[[set[str]], bool], fleet: SyntheticFleet, session: aiohttp.ClientSession, what: str, within_s: float
) -> None:
    end = time.perf_counter() + within_s
    while not good(await up_of(fleet, session)):
        if time.perf_counter() > end:
            raise TimeoutError(f"waited {within_s:g} s for {what}")
        await asyncio.sleep(0.05)


def _max_to_mean(counts: list[int]) -> float:
    return max(counts) / max(statistics.mean(counts), 1e-9) if counts else 1.0


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [float("nan")]
    return {"median": _at(ordered, 0.5), "p95": _at(ordered, 0.95), "max": _at(ordered, 1.0)}


def _at(ordered: list[float], share: float) -> float:
    return _round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else float("nan")


def _round(value: float, digits: int = 2) -> float:
    return round(value, digits)


def run() -> dict[str, Any]:
    scale = float(os.environ.get("FLEET_SCALE", "1"))
    size = Size()._replace(requests=max(100, int(scale * Size().requests)))
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(Path(directory))
        try:
            url = server.start()
            result: dict[str, Any] = {"load_average_before": _round(os.getloadavg()[0])}
            result["load"] = uvloop.run(load(url, size))
            result["misbehaviour"] = uvloop.run(misbehaviour(url, engines=16, router=RouterConfig(), deadline_s=90.0))
            return result
        finally:
            server.stop()


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
