"""Our router beside sglang-router (round robin) and a direct connection: the same engines, clients and two cores, in turns.

``throughput``: 64 clients that ask without a pause, bodies of 2 KB, answers of 4 KB and of 64 KB. ``held``: 2,000 clients at
once, each request answered after 2 s; ``added`` is what lies above those 2 s. Router CPU is that of its process. Engines and
clients are raw protocols (``router_parts.py``), so a router's figure is not theirs; all of them share the machine.

sglang-router has an environment of its own: ``pip install sglang-router==0.3.2`` into a virtual environment, and
``SGLANG_ROUTER_PYTHON=/path/to/its/python`` (without it only ours and the direct connection are measured).
``ROUTER_BEFORE=/path/to/a/checkout`` has the router of another commit stand beside them, as ``before``. All routers of a
turn are up at the same time, and are asked one after the other. ``ROUTER_REPEATS`` (default 5), ``ROUTER_SECONDS`` (default
3). ``miles-async bench router``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.lib import router_parts
from miles_async.engines.sglang.driver import free_port

CONNECTIONS, BODY_BYTES = 64, 2048
ANSWERS = {"4 KB": 4096, "64 KB": 65536}
HELD, HELD_REQUESTS, HOLD_S, RAMP_S = 2000, 2, 2.0, 0.5
ENGINES = 2
START_S, WARM_S = 120.0, 0.5
ROOT = Path(__file__).resolve().parent.parent


def _python(*words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.lib.router_parts", *words]


@contextlib.contextmanager
def _process(words: list[str], root: Path = ROOT) -> Iterator[psutil.Process]:
    env = os.environ | {"PYTHONPATH": str(root)}
    # not a pipe: nobody reads it
    with subprocess.Popen(words, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()


async def _until_answered(port: int, what: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        load = await router_parts.held(port, 1, 1, router_parts.post(port, BODY_BYTES), 0.0, 0.0)
        if load.cold:
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{what} did not answer /generate within {START_S:g} s")


@contextlib.contextmanager
def _fleet(answer_bytes: int, hold_s: float) -> Iterator[list[int]]:
    ports = [free_port("127.0.0.1") for _ in range(ENGINES)]
    size, hold = str(answer_bytes), str(hold_s)
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(
                _process(_python("engine", "--port", str(port), "--answer-bytes", size, "--hold-s", hold))
            )
        yield ports


def _routers(engine_ports: list[int]) -> dict[str, tuple[list[str], Path]]:
    """The command of each router, ``{port}`` to be filled in, and the checkout in which it is run."""
    urls = [f"http://127.0.0.1:{port}" for port in engine_ports]
    ours = _python("router", "--port", "{port}", "--engines", *urls)
    routers = {"miles_async": (ours, ROOT)}
    if before := os.environ.get("ROUTER_BEFORE"):
        earlier = not (Path(before) / "benchmarks" / "lib").is_dir()  # then its parts lie beside the benchmarks
        routers["before"] = (
            [w.replace("benchmarks.lib.", "benchmarks.") for w in ours] if earlier else ours,
            Path(before),
        )
    if python := os.environ.get("SGLANG_ROUTER_PYTHON"):
        words = "-m sglang_router.launch_router --policy round_robin --log-level warn --host 127.0.0.1 --port {port}"
        # its limits on requests in flight and in line would refuse the 2,000
        limits = ["--max-concurrent-requests", "8192", "--prometheus-port", str(free_port("127.0.0.1"))]
        routers["sglang_router"] = ([python, *words.split(), *limits, "--worker-urls", *urls], ROOT)
    return routers


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


async def _throughput(port: int, seconds: float, router: psutil.Process | None) -> dict[str, float]:
    before = _cpu_s(router)
    started = time.perf_counter()
    load = await router_parts.closed_loop(port, CONNECTIONS, seconds, router_parts.post(port, BODY_BYTES))
    elapsed, latencies = time.perf_counter() - started, load.warm + load.cold
    return {
        "requests_per_s": len(latencies) / elapsed,
        "p50_ms": 1e3 * statistics.median(latencies),
        "p99_ms": 1e3 * _percentile(latencies, 0.99),
        "errors": len(load.errors),
        "router_cpu_us_per_request": 1e6 * (_cpu_s(router) - before) / max(len(latencies), 1),
        "router_rss_mb": router.memory_info().rss / 1e6 if router else 0.0,
    }


async def _held(port: int, router: psutil.Process | None) -> dict[str, float]:
    request = router_parts.post(port, BODY_BYTES)
    load = await router_parts.held(port, HELD, HELD_REQUESTS, request, HOLD_S, RAMP_S)
    warm = [1e3 * (seconds - HOLD_S) for seconds in load.warm]
    cold = [1e3 * (seconds - HOLD_S) for seconds in load.cold]
    return {
        "answered": len(warm) + len(cold),
        "errors": len(load.errors),
        "added_p50_ms": statistics.median(warm) if warm else float("nan"),
        "added_p99_ms": _percentile(warm, 0.99),
        "added_cold_p99_ms": _percentile(cold, 0.99),
        "router_rss_mb": router.memory_info().rss / 1e6 if router else 0.0,
    }


def _cpu_s(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return times.user + times.system


async def _measure(answer_bytes: int, hold_s: float, seconds: float, repeats: int) -> list[dict[str, dict[str, float]]]:
    """In each turn every router once, and the direct connection, in front of the same engines."""
    with contextlib.ExitStack() as stack:
        engines = stack.enter_context(_fleet(answer_bytes, hold_s))
        for port in engines:
            await _until_answered(port, "an engine")
        served: dict[str, tuple[int, psutil.Process | None]] = {"direct": (engines[0], None)}
        for name, (words, root) in _routers(engines).items():
            port = free_port("127.0.0.1")
            process = stack.enter_context(_process([word.replace("{port}", str(port)) for word in words], root))
            served[name] = port, process
        for name, (port, process) in served.items():
            await _until_answered(port, name)
            if not hold_s:
                await _throughput(port, WARM_S, process)
        turns: list[dict[str, dict[str, float]]] = []
        for _ in range(repeats):
            turns.append({})
            for name, (port, process) in served.items():
                asked = _held(port, process) if hold_s else _throughput(port, seconds, process)
                turns[-1][name] = await asked
        return turns


def _medians(turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """By router: the median of each figure over the turns, and the range of the ratio to sglang-router in the same turn."""
    table: dict[str, Any] = {}
    for name in turns[0]:
        table[name] = {key: round(statistics.median(turn[name][key] for turn in turns), 3) for key in turns[0][name]}
    if "sglang_router" in table and "requests_per_s" in turns[0]["direct"]:
        for name, row in table.items():
            ratios = [turn[name]["requests_per_s"] / turn["sglang_router"]["requests_per_s"] for turn in turns]
            row["over_sglang_router"] = round(statistics.median(ratios), 2)
            row["over_sglang_router_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return table


def run() -> dict[str, Any]:
    repeats, seconds = int(os.environ.get("ROUTER_REPEATS", "5")), float(os.environ.get("ROUTER_SECONDS", "3"))

    async def all_of_it() -> dict[str, Any]:
        result: dict[str, Any] = {"connections": CONNECTIONS, "body_bytes": BODY_BYTES, "repeats": repeats}
        for name, size in ANSWERS.items():
            result[f"throughput, answers of {name}"] = _medians(await _measure(size, 0.0, seconds, repeats))
        turns = await _measure(4096, HOLD_S, seconds, min(repeats, 3))
        result[f"held: {HELD} requests of {HOLD_S:g} s at once"] = _medians(turns)
        result["load_average"] = os.getloadavg()[0]
        return result

    return uvloop.run(all_of_it())


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
