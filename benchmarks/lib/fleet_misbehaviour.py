"""Engines of a fleet misbehave, one of each kind: when each gets no requests any more, and when it gets some again."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import aiohttp

from benchmarks.lib.fleet_clients import Outcome, Size, ask
from benchmarks.lib.fleet_figures import rounded
from benchmarks.lib.fleet_samples import until, up_of
from benchmarks.lib.synthetic.fleet import SyntheticFleet, duties, synthetic_fleet
from benchmarks.lib.synthetic_engine import Misbehaviour
from bus.messages import EngineDown, Event
from miles_async.config.schema import Router as RouterConfig

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
                after[name] = rounded(time.perf_counter() - began, 1)
        await asyncio.sleep(0.05)
    return after
