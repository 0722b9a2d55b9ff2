"""The bus end to end: groups through the ledger (admit, claim, publish, batch, fetch, commit) against plain streams.

One producer and one consumer process on one Redis of our own (append-only file, everysec). The plain baseline does
pipelined XADD, XREADGROUP and XACK of the same payload bytes and decodes them: no ledger, nothing idempotent, no write-ahead
record. Both are run in turns; medians. ``miles-async bench bus``.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bus import Bus, Ledger, connect
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, decode, encode, pack
from bus.ledger_leases import Publication
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
    """Dealer and rollout worker in one: admit, claim, publish; 8 publications in a script, as a worker's gather in one."""
    ledger = Ledger(bus)
    await ledger.prepare()
    position = done = 0
    while done < n_groups:
        tickets = [
            Ticket(group_id=f"0-{p}-0", prompt_tokens=b"", sampling_seed=p) for p in range(position, position + BATCH)
        ]
        _, position = await ledger.admit(tickets, limit=4 * BATCH, position=position)
        claimed = await ledger.next_tickets("w", "w/1", BATCH, None)
        groups = [make_group(c.ticket.group_id, n_samples, n_tokens) for c in claimed]
        ready = [Publication(group, 0.0, encode(group)) for group in groups]
        await asyncio.gather(*(ledger.publish_all(ready[i : i + 8], "w/1") for i in range(0, len(ready), 8)))
        done += len(groups)


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


def _in_process(role: Callable[..., Any], url: str, run_id: str, *args: int) -> None:
    import uvloop

    async def main() -> None:
        bus = await connect(url, run_id)
        await role(bus, *args)
        await bus.close()

    uvloop.run(main())


def once(url: str, run_id: str, kind: str, n_groups: int, n_samples: int, n_tokens: int) -> float:
    """Seconds from the first byte to the last group decoded (processes started before)."""
    producer, consumer = (ledger_producer, ledger_consumer) if kind == "ledger" else (plain_producer, plain_consumer)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.bench_bus", "uvloop", "redis.asyncio"])
    sink = context.Process(target=_in_process, args=(consumer, url, run_id, n_groups))
    source = context.Process(target=_in_process, args=(producer, url, run_id, n_groups, n_samples, n_tokens))
    sink.start()
    started = time.perf_counter()
    source.start()
    sink.join()
    source.join()
    return time.perf_counter() - started


def run(repeats: int = 5) -> dict[str, Any]:
    """Medians for a small and a realistic group; ``ratio`` is ledger over plain."""
    result: dict[str, Any] = {"repeats": repeats, "appendfsync": "everysec"}
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(Path(directory))
        url = server.start()
        for name, n_groups, n_samples, n_tokens in (("8x8 tokens", 3200, 8, 8), ("8x512 tokens", 640, 8, 512)):
            size = len(encode(make_group("0-0-0", n_samples, n_tokens)))
            seconds: dict[str, list[float]] = {"ledger": [], "plain": []}
            for repeat in range(repeats):
                for kind in ("ledger", "plain"):
                    run_id = f"{kind}-{n_tokens}-{repeat}"
                    seconds[kind].append(once(url, run_id, kind, n_groups, n_samples, n_tokens))
            row: dict[str, Any] = {"group_bytes": size}
            for kind, times in seconds.items():
                middle = statistics.median(times)
                row[kind] = {
                    "samples_per_s": round(n_groups * n_samples / middle),
                    "groups_per_s": round(n_groups / middle),
                    "MB_per_s": round(n_groups * size / middle / 1e6, 1),
                }
            row["ratio"] = round(row["ledger"]["groups_per_s"] / row["plain"]["groups_per_s"], 3)
            result[name] = row
        server.stop()
    return result


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
