"""The ledger on a real Redis balances after any interleaving of its clients."""

from __future__ import annotations

import asyncio
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_steps import group, ticket

from bus import Ledger, LedgerError, balanced, connect


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
async def test_the_ledger_balances_after_any_interleaving(redis_url: str, seed: int) -> None:
    """Three clients make random transitions at once, repeat some, and lose leases; no group is lost or trained twice."""
    rng = random.Random(seed)
    bus = await connect(redis_url, f"interleaving-{seed}-{rng.random()}")
    ledger = Ledger(bus)
    await ledger.prepare()
    trained: list[str] = []
    leases: dict[str, list[str]] = {}

    async def client(name: str) -> None:
        lease = f"{name}/1"
        for _ in range(25):
            match rng.choice(["admit", "claim", "publish", "publish", "drop", "release", "batch", "batch", "commit"]):
                case "admit":
                    position = (await ledger.open_groups()).next_position
                    await ledger.admit([ticket(position + i) for i in range(3)], limit=12, position=position)
                case "claim":
                    open_now = await ledger.open_groups()
                    if "w" in open_now.states:
                        for c in await ledger.next_tickets(name, lease, 2, rng.choice([0, 60_000])):
                            leases.setdefault(lease, []).append(c.ticket.group_id)
                case "publish" if leases.get(lease):
                    gid = rng.choice(leases[lease])
                    for _ in range(rng.choice([1, 2])):
                        await ledger.publish(group(gid), lease, 0.0)
                case "drop" if (open_now := await ledger.open_groups()).order:
                    await ledger.drop(rng.choice(open_now.order), "test")
                case "release":
                    await ledger.release(lease)
                case "batch":
                    step = (await ledger.steps())[0] + 1
                    states = await ledger.open_groups()
                    waiting = {g for g, s in zip(states.order, states.states, strict=True) if s == "r"}
                    ready, _ = await ledger.ready_groups("0", block_ms=0)
                    chosen = [r for r in ready if r.group_id in waiting][:2]
                    if chosen:
                        try:
                            record = await ledger.batch(step, chosen)
                            if record.group_ids == tuple(r.group_id for r in chosen):
                                trained.extend(record.group_ids)
                        except LedgerError:
                            pass  # another client was first
                case "commit":
                    await ledger.commit((await ledger.steps())[0])
            assert balanced(await ledger.counts())

    await asyncio.gather(*(client(name) for name in "abc"))
    counts = await ledger.counts()
    states = await ledger.open_groups()
    for letter, name in (("w", "waiting"), ("f", "in_flight"), ("r", "ready")):
        assert states.states.count(letter) == counts[name]
    assert len(set(trained)) == counts["batched"] + counts["trained"]
    await bus.close()
