"""The bus end to end: groups through the ledger (admit, claim, publish, batch, fetch, commit) against plain streams.

One producer and one consumer process on one Redis of our own (append-only file, everysec). The plain baseline does
pipelined XADD, XREADGROUP and XACK of the same payload bytes and decodes them: no ledger, nothing idempotent, no write-ahead
record. Both are run in turns; medians. ``miles-async bench bus``.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bus import Bus, Ledger, connect
from bus.client import Topic
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, decode, encode, pack
from bus.ledger_leases import ClaimedTicket, Publication
from bus.messages import Group, Sample, Ticket
from bus.server import RedisServer

BATCH = 32  # groups of a step, and entries of a pipeline


def make_group(group_id: str, n_samples: int, n_tokens: int) -> Group:
    rng = np.random.default_rng(0)
    sample = Sample(
        index=0,
        tokens=pack(rng.integers(0, 150_000, n_tokens), TOKENS),
        logprobs=pack(rng.normal(size=n_tokens), LOGPROBS),
        loss_mask=pack(np.ones(n_tokens), MASK),
        versions=pack(np.zeros(n_tokens), VERSIONS),
        reward=1.0,
        finish_reason="stop",
    )
    return Group(
        group_id=group_id,
        prompt_tokens=pack(np.arange(64), TOKENS),
        samples=(sample,) * n_samples,
        worker="bench",
        started=0.0,
        finished=0.0,
    )


async def ledger_producer(bus: Bus, n_groups: int, n_samples: int, n_tokens: int) -> None:
    """Dealer and rollout worker: admit; claim while others are published, 8 groups in a script, as a worker's gather in one."""
    ledger = Ledger(bus)
    await ledger.prepare()
    at_once = asyncio.Semaphore(4)
    claimed: asyncio.Queue[list[ClaimedTicket]] = asyncio.Queue(maxsize=1)

    async def claim() -> None:
        done = 0
        while done < n_groups:
            tickets = await ledger.next_tickets("w", "w/1", BATCH, None)
            if tickets:
                await claimed.put(tickets)
            done += len(tickets)

    async def publish(ready: list[Publication]) -> None:
        await ledger.publish_all(ready, "w/1")
        at_once.release()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(deal(ledger, n_groups))
        tasks.create_task(claim())
        done = 0
        while done < n_groups:
            tickets = await claimed.get()
            for some in (tickets[i : i + 8] for i in range(0, len(tickets), 8)):
                groups = [make_group(c.ticket.group_id, n_samples, n_tokens) for c in some]
                await at_once.acquire()
                tasks.create_task(publish([Publication(group, 0.0, encode(group)) for group in groups]))
                await asyncio.sleep(0)  # these are on their way while the next ones are made
            done += len(tickets)


async def deal(ledger: Ledger, n_groups: int) -> None:
    """Admit what there is room for; what was trained makes some."""
    position = 0
    news: dict[Topic, str] = {"batches": "0"}
    while position < n_groups:
        upto = min(position + BATCH, n_groups)
        tickets = [Ticket(group_id=f"0-{p}-0", prompt_tokens=b"", sampling_seed=p) for p in range(position, upto)]
        admitted, position = await ledger.admit(tickets, limit=4 * BATCH, position=position)
        if admitted < len(tickets):
            await ledger.bus.wait_for_news(news)


async def ledger_consumer(bus: Bus, n_groups: int) -> int:
    """The learner: batches of 32, recorded, fetched, decoded, committed."""
    ledger = Ledger(bus)
    cursor, ready, step, n_bytes = "0", [], 0, 0
    while step * BATCH < n_groups:
        more, cursor = await ledger.ready_groups(cursor)
        ready += more
        while len(ready) >= BATCH and step * BATCH < n_groups:
            step += 1
            record = await ledger.batch(step, ready[:BATCH])
            ready = ready[BATCH:]
            for group in await ledger.payloads(record.payload_keys):
                n_bytes += sum(len(s.tokens) + len(s.logprobs) for s in group.samples)
            await ledger.commit(step)
    return n_bytes


async def plain_producer(bus: Bus, n_groups: int, n_samples: int, n_tokens: int) -> None:
    for start in range(0, n_groups, BATCH):
        pipe = bus.redis.pipeline(transaction=False)
        for i in range(start, start + BATCH):
            pipe.xadd(bus.key("plain"), {"m": encode(make_group(f"0-{i}-0", n_samples, n_tokens))})
        await pipe.execute()


async def plain_consumer(bus: Bus, n_groups: int) -> int:
    key, seen, n_bytes = bus.key("plain"), 0, 0
    await bus.redis.xgroup_create(key, "g", id="0", mkstream=True)
    while seen < n_groups:
        answer = await bus.redis.xreadgroup("g", "c", {key: ">"}, count=BATCH, block=500)
        entries = answer[0][1] if answer else []
        for _, fields in entries:
            group = decode(fields[b"m"], Group)
            n_bytes += sum(len(s.tokens) + len(s.logprobs) for s in group.samples)
        if entries:
            await bus.redis.xack(key, "g", *(entry_id for entry_id, _ in entries))
        seen += len(entries)
    return n_bytes


def _in_process(role: Callable[..., Any], told: Any, url: str, run_id: str, *args: int) -> None:
    """``told`` hears how many CPU seconds it took."""
    import uvloop

    async def main() -> None:
        bus = await connect(url, run_id)
        await role(bus, *args)
        await bus.close()

    began = time.process_time()
    uvloop.run(main())
    told.send(time.process_time() - began)


def once(server: RedisServer, run_id: str, kind: str, n_groups: int, n_samples: int, n_tokens: int) -> dict[str, float]:
    """Seconds from the first byte to the last group decoded (processes started before), and the CPU seconds of each process."""
    producer, consumer = (ledger_producer, ledger_consumer) if kind == "ledger" else (plain_producer, plain_consumer)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.bench_bus", "uvloop", "redis.asyncio"])
    redis = psutil.Process(server.pid)
    before = redis.cpu_times()
    (sunk, sink_told), (sourced, source_told) = context.Pipe(False), context.Pipe(False)
    sink = context.Process(target=_in_process, args=(consumer, sink_told, server.url, run_id, n_groups))
    args = (producer, source_told, server.url, run_id, n_groups, n_samples, n_tokens)
    source = context.Process(target=_in_process, args=args)
    sink.start()
    started = time.perf_counter()
    source.start()
    sink.join()
    source.join()
    wall, after = time.perf_counter() - started, redis.cpu_times()
    used = after.user + after.system - before.user - before.system
    return {"wall": wall, "producer": sourced.recv(), "consumer": sunk.recv(), "redis": used}


def run(repeats: int = 5) -> dict[str, Any]:
    """Medians for a small and a realistic group, ledger over plain: ``ratio`` in groups per second, ``cpu_ratio`` in groups per
    CPU second of all three processes, which the load of others moves less."""
    result: dict[str, Any] = {"repeats": repeats, "appendfsync": "everysec", "load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(Path(directory))
        server.start()
        for name, n_groups, n_samples, n_tokens in (("8x8 tokens", 6400, 8, 8), ("8x512 tokens", 1280, 8, 512)):
            size = len(encode(make_group("0-0-0", n_samples, n_tokens)))
            measured: dict[str, list[dict[str, float]]] = {"ledger": [], "plain": []}
            for repeat in range(repeats):
                for kind, times in measured.items():
                    run_id = f"{kind}-{n_tokens}-{repeat}"
                    times.append(once(server, run_id, kind, n_groups, n_samples, n_tokens))
            row: dict[str, Any] = {"group_bytes": size}
            for kind, times in measured.items():
                middle = {part: statistics.median(one[part] for one in times) for part in times[0]}
                wall = middle.pop("wall")
                row[kind] = {
                    "samples_per_s": round(n_groups * n_samples / wall),
                    "groups_per_s": round(n_groups / wall),
                    "MB_per_s": round(n_groups * size / wall / 1e6, 1),
                    "cpu_us_per_group": {part: round(1e6 * cpu_s / n_groups, 1) for part, cpu_s in middle.items()},
                }
            row["ratio"] = round(row["ledger"]["groups_per_s"] / row["plain"]["groups_per_s"], 3)
            cpu = {kind: sum(row[kind]["cpu_us_per_group"].values()) for kind in measured}
            row["cpu_ratio"] = round(cpu["plain"] / cpu["ledger"], 3)
            result[name] = row
        server.stop()
    return result


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
