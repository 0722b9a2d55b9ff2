"""Groups without content, dealt and made ready in a ledger; and what its record says of them."""

from __future__ import annotations

from bus import Bus, Ledger
from bus.messages import Group, ReadyGroup, Ticket, Transition


def ticket(position: int) -> Ticket:
    return Ticket(group_id=f"0-{position}-0", prompt_tokens=b"\1\0\0\0", sampling_seed=position)


def group(group_id: str, worker: str = "w") -> Group:
    return Group(group_id=group_id, prompt_tokens=b"", samples=(), worker=worker, started=0.0, finished=0.0)


async def deal(ledger: Ledger, n: int, start: int = 0) -> None:
    await ledger.prepare()
    assert await ledger.admit([ticket(start + i) for i in range(n)], limit=10**6, position=start) == (n, start + n)


async def make_ready(ledger: Ledger, n: int, lease: str = "w/1") -> list[ReadyGroup]:
    before, _ = await ledger.ready_groups("0", block_ms=0)
    for claimed in await ledger.next_tickets("w", lease, n, 60_000):
        assert await ledger.publish(group(claimed.ticket.group_id), lease, 0.0)
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    return ready[len(before) :]


async def transitions(bus: Bus) -> list[Transition]:
    found, _ = await bus.read("events", Transition, "0")
    return found
