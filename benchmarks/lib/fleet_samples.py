"""What is looked at while a fleet is under load: which engines are up, their requests in flight, the router's memory."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from benchmarks.lib.fleet_figures import max_to_mean, rounded, spread
from benchmarks.lib.synthetic.fleet import SyntheticFleet

SAMPLE_S = 0.25
FULL = 0.8  # of the clients have a request in flight: then the balance is looked at
SERIES = 20  # points of the memory that are reported
SETTLED = 0.2  # of the time is over: from then on the memory is looked at


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
                self.ratios.append(max_to_mean([w["inflight"] for w in workers if w["state"] in ("up", "updating")]))
                up = {worker["id"] for worker in workers if worker["state"] == "up"}
                self.steady.append(max_to_mean([w["inflight"] for w in workers if w["id"] in up & before]))
                before = up

    def report(self) -> dict[str, Any]:
        settled = self.rss_mb[int(SETTLED * len(self.rss_mb)) :]
        first, second = settled[: len(settled) // 2], settled[len(settled) // 2 :]
        return {
            "inflight_max_to_mean": spread(self.ratios),
            "inflight_max_to_mean_without_updates_and_newcomers": spread(self.steady),
            "router_rss_mb": {
                "start": rounded(self.rss_mb[0]),
                "first_half": rounded(statistics.mean(first)),
                "second_half": rounded(statistics.mean(second)),
                "series": [rounded(mb, 1) for mb in self.rss_mb[:: max(1, len(self.rss_mb) // SERIES)]],
                "growth_share": rounded(statistics.mean(second) / statistics.mean(first) - 1, 4),
            },
        }


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
