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
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.lib.fleet_clients import Outcome, Size, ask
from benchmarks.lib.fleet_figures import rounded
from benchmarks.lib.fleet_judgement import judge
from benchmarks.lib.fleet_misbehaviour import misbehaviour
from benchmarks.lib.fleet_samples import Samples, until
from benchmarks.lib.synthetic.fleet import duties, synthetic_fleet
from bus.server import RedisServer
from miles_async.config.schema import Router as RouterConfig


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
            "seconds": rounded(seconds),
            "deaths": len(fleet.deaths),
            "versions": fleet.updates,
            **judge(fleet, outcome, size, await fleet.given_up()),
            **samples.report(),
            "router_cpu_share": rounded((after.user + after.system - before.user - before.system) / seconds),
        }


def run() -> dict[str, Any]:
    scale = float(os.environ.get("FLEET_SCALE", "1"))
    size = Size()._replace(requests=max(100, int(scale * Size().requests)))
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(Path(directory))
        try:
            url = server.start()
            result: dict[str, Any] = {"load_average_before": rounded(os.getloadavg()[0])}
            result["load"] = uvloop.run(load(url, size))
            result["misbehaviour"] = uvloop.run(misbehaviour(url, engines=16, router=RouterConfig(), deadline_s=90.0))
            return result
        finally:
            server.stop()


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
