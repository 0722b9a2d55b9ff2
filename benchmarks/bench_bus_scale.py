"""How far one Redis carries: a run of 1,000 rollout workers and 200 engines that do nothing but speak to it.

Groups are dealt at one rate after the other, 0 first, so that what the fleet costs at rest is known; Redis is one of our own,
append-only file and all, over TCP. ``BUS_WORKERS``, ``BUS_ENGINES``, ``BUS_PROCESSES`` (that they share), ``BUS_SECONDS`` (of
each rate), ``BUS_RATES``, ``BUS_TOKENS`` (of each of a group's 8 samples), ``BUS_IN_FLIGHT``. ``miles-async bench bus_scale``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import resource
import socket
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.bench_bus import make_group
from benchmarks.lib.bus_fleet import BEGIN, Load, Told, act
from bus import Bus, Ledger, connect
from bus.codec import encode
from bus.messages import Control
from bus.server import RedisServer

ALONE = ("dealer", "learner", "monitor", "broadcaster", "router")  # a process each, as in a run
START_S = 120.0
STOP_S = 60.0


class Look(NamedTuple):
    """Counters at one moment."""

    time: float
    redis_s: float  # CPU seconds of Redis
    clients_s: float  # of all actors
    commands: int
    published: int
    trained: int
    open: int


def _be(names: list[tuple[str, int]], load: Load, told: Connection) -> None:
    import uvloop

    told.send(uvloop.run(act(names, load)))


def _shares(workers: int, engines: int, processes: int) -> list[list[tuple[str, int]]]:
    crowd = [("rollout", i) for i in range(workers)] + [("engine", i) for i in range(engines)]
    return [crowd[i::processes] for i in range(processes)] + [[(role, 0)] for role in ALONE]


async def _look(bus: Bus, redis: psutil.Process, clients: list[psutil.Process]) -> Look:
    counts, info = await Ledger(bus).counts(), await bus.redis.info("stats")
    used = redis.cpu_times()
    published = counts["ready"] + counts["batched"] + counts["trained"]
    return Look(
        time.time(),
        used.user + used.system,
        sum(times.user + times.system for times in (client.cpu_times() for client in clients)),
        int(info["total_commands_processed"]),
        published,
        counts["trained"],
        counts["waiting"] + counts["in_flight"] + counts["ready"],
    )


async def _all_here(bus: Bus, expected: int) -> float:
    """Seconds until all actors have given a sign of life. Raises TimeoutError."""
    began = time.monotonic()
    while (here := await bus.redis.hlen(bus.key("heartbeats"))) < expected:
        if time.monotonic() > began + START_S:
            raise TimeoutError(f"{here} of {expected} actors are there after {START_S:g} s")
        await asyncio.sleep(0.1)
    return time.monotonic() - began


async def _measure(load: Load, server: RedisServer, clients: list[psutil.Process]) -> dict[str, Any]:
    assert server.pid is not None
    redis, bus = psutil.Process(server.pid), await connect(load.url, load.run_id)
    try:
        expected = load.workers + load.engines + len(ALONE)
        started_s = await _all_here(bus, expected)
        begin = time.time() + 1.0
        await bus.redis.set(bus.key(BEGIN), begin)
        looks = list[Look]()
        for number in range(len(load.rates) + 1):
            await asyncio.sleep(begin + number * load.phase_s - time.time())
            looks.append(await _look(bus, redis, clients))
        server_info = await bus.redis.info()
        return {
            "started_s": round(started_s, 1),
            "connections": int(server_info["connected_clients"]),
            "redis_version": str(server_info["redis_version"]),
            "redis_rss_mb": round(redis.memory_info().rss / 1e6),
            "looks": looks,
        }
    finally:
        await bus.publish("control", Control(command="stop"))
        await bus.close()


def _rows(load: Load, looks: list[Look], told: list[Told]) -> list[dict[str, Any]]:
    publications = [one for each in told for one in each.publications]
    rolls = [one for each in told for one in each.rolls]
    rows = list[dict[str, Any]]()
    for rate, (one, other) in zip(load.rates, itertools.pairwise(looks), strict=True):
        seconds = other.time - one.time
        published = (other.published - one.published) / seconds
        row: dict[str, Any] = {
            "dealt_groups_per_s": rate,
            "published_groups_per_s": round(published),
            "trained_groups_per_s": round((other.trained - one.trained) / seconds),
            "MB_per_s": round(published * len(load.payload) / 1e6, 1),
            "redis_cores": round((other.redis_s - one.redis_s) / seconds, 3),
            "clients_cores": round((other.clients_s - one.clients_s) / seconds, 2),
            "commands_per_s": round((other.commands - one.commands) / seconds),
            "redis_us_per_command": round(
                1e6 * (other.redis_s - one.redis_s) / max(other.commands - one.commands, 1), 1
            ),
            "open_groups_at_the_end": other.open,
        }
        took = sorted(1000 * s for at, s in publications if one.time < at <= other.time)
        if len(took) > 1:
            row["publish_ms"] = {"p50": round(statistics.median(took), 2), "p99": round(took[int(0.99 * len(took))], 2)}
        if rolled := [s for at, s in rolls if one.time < at <= other.time]:
            row["version_to_all_engines_s"] = round(statistics.median(rolled), 3)
        rows.append(row)
    return rows


def once(
    workers: int, engines: int, processes: int, n_tokens: int, rates: tuple[int, ...], seconds: float
) -> dict[str, Any]:
    """One fleet on one fresh Redis, through all rates."""
    payload = encode(make_group("0-0-0", 8, n_tokens))
    with tempfile.TemporaryDirectory() as directory, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        server = RedisServer(Path(directory), flags={"port": str(port), "bind": "127.0.0.1"})
        server.start()
        load = Load(
            url=f"redis://127.0.0.1:{port}",
            run_id="scale",
            workers=workers,
            engines=engines,
            in_flight=int(os.environ.get("BUS_IN_FLIGHT", "8")),
            generation_s=1.0,
            batch=256,
            payload=payload,
            phase_s=seconds,
            rates=rates,
        )
        asyncio.run(_prepare(load))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.lib.bus_fleet", "uvloop", "redis.asyncio"])
        heard, started = list[Connection](), list[Any]()
        for names in _shares(workers, engines, processes):
            hears, says = context.Pipe(False)
            started.append(context.Process(target=_be, args=(names, load, says)))
            started[-1].start()
            heard.append(hears)
        try:
            found = asyncio.run(_measure(load, server, [psutil.Process(one.pid) for one in started]))
            told = [hears.recv() for hears in heard if hears.poll(STOP_S)]
        finally:
            for one in started:
                one.join(STOP_S)
                one.kill()
            server.stop()
    looks = found.pop("looks")
    return {"group_bytes": len(payload), **found, "rates": _rows(load, looks, told)}


async def _prepare(load: Load) -> None:
    bus = await connect(load.url, load.run_id)
    await Ledger(bus).prepare()
    await bus.close()


def run() -> dict[str, Any]:
    """One row for each rate, for groups of a few tokens and of ``BUS_TOKENS`` a sample."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    told = os.environ.get
    workers, engines = int(told("BUS_WORKERS", "1000")), int(told("BUS_ENGINES", "200"))
    rates = tuple(int(rate) for rate in told("BUS_RATES", "0 100 300 1000 2000").split())
    result: dict[str, Any] = {
        "workers": workers,
        "engines": engines,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
    for n_tokens in (8, int(told("BUS_TOKENS", "512"))):
        arguments = (
            workers,
            engines,
            int(told("BUS_PROCESSES", "4")),
            n_tokens,
            rates,
            float(told("BUS_SECONDS", "10")),
        )
        result[f"8x{n_tokens} tokens"] = once(*arguments)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return result


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
