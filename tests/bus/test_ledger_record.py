"""The ledger's record on a real Redis: every transition is on it, and no stream is trimmed to make room."""

from __future__ import annotations

import msgspec
from ledger_steps import deal, group, make_ready, transitions

from bus import Bus, Ledger
from bus.codec import TOKENS, VERSIONS, pack
from bus.messages import Metrics, Sample


async def test_every_transition_is_on_record(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 3)
    first, second, third = await ledger.next_tickets("w", "w/1", 3, 60_000)
    tokens, versions = pack([5, 6, 7], TOKENS), pack([1, 1, 2], VERSIONS)
    sample = Sample(
        index=0, tokens=tokens, logprobs=b"", loss_mask=b"", versions=versions, reward=0.5, finish_reason="stop"
    )
    whole = msgspec.structs.replace(group(first.ticket.group_id), samples=(sample, sample))
    assert await ledger.publish(whole, "w/1", 12.5)
    assert await ledger.fail(second.ticket.group_id, "w/1", "reward_error", "no: ü", lengths=(3, 4)) == "again"
    assert await ledger.release("w/1") == 1
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    await ledger.batch(1, ready, max_lag=3, masked_tokens=7)
    await ledger.commit(1)
    await ledger.drop(third.ticket.group_id, "stale", "too old")

    found = await transitions(bus)
    kinds = ["admitted", "claimed", "published", "failed", "released", "batched", "trained"]
    assert [t.kind for t in found] == [*kinds, "dropped"]
    by_kind = {t.kind: t for t in found}
    assert by_kind["admitted"].group_ids == ("0-0-0", "0-1-0", "0-2-0")
    published = by_kind["published"].group
    assert published == ready[0]
    assert (published.lengths, published.rewards, published.versions) == ((3, 3), (0.5, 0.5), ((1, 4), (2, 2)))
    assert (published.oldest_version, published.newest_version, published.n_tokens) == (1, 2, 6)
    failed = by_kind["failed"]
    assert (failed.by, failed.reason, failed.detail, failed.lengths) == ("w/1", "reward_error", "no: ü", (3, 4))
    assert (by_kind["batched"].step, by_kind["trained"].step) == (1, 1)
    assert (by_kind["batched"].max_lag, by_kind["batched"].masked_tokens) == (3, 7)
    assert (by_kind["trained"].max_lag, by_kind["trained"].masked_tokens) == (-1, -1)
    assert by_kind["dropped"].detail == "too old"


async def test_no_stream_is_trimmed_to_make_room(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 300)
    ready = await make_ready(ledger, 150)
    assert await bus.redis.xlen(bus.key("tickets")) == 150  # those that wait
    assert await bus.redis.xlen(bus.key("samples")) == len(ready) == 150
    for _ in range(300):
        await bus.publish("metrics", Metrics(actor="a", step=0, time=0.0, values={}))
    assert await bus.redis.xlen(bus.key("metrics")) == 300
