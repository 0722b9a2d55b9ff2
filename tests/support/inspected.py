"""Runs on a real ledger, written to disk as the supervisor does it, and what ``inspect`` says of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from typer.testing import CliRunner, Result

from bus import Bus, Ledger, connect
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Event, Group, Sample, Ticket, Transition
from miles_async.cli import app as cli
from miles_async.monitor.record_lines import EventLine, TransitionLine, transition_line

_run_ids = itertools.count()
_numbers = itertools.count(1)


def ticket(position: int) -> Ticket:
    return Ticket(group_id=f"0-{position}-0", prompt_tokens=pack([3], TOKENS), sampling_seed=position, prompt="2+2=")


def group(group_id: str, versions: Sequence[int] = (0, 0), reward: float = 0.5) -> Group:
    n = len(versions)
    sample = Sample(
        index=0,
        tokens=pack([5] * n, TOKENS),
        logprobs=pack([0.0] * n, LOGPROBS),
        loss_mask=pack([1] * n, MASK),
        versions=pack(list(versions), VERSIONS),
        reward=reward,
        finish_reason="stop",
    )
    return Group(group_id=group_id, prompt_tokens=b"", samples=(sample,), worker="w", started=0.0, finished=0.0)


class Story:
    """A run on a real ledger: ``write`` puts what happened so far on disk, as the supervisor does."""

    def __init__(self, bus: Bus, run_dir: Path) -> None:
        self.bus, self.ledger, self.run_dir = bus, Ledger(bus), run_dir
        self._cursor = "0"

    async def deal(self, n: int) -> None:
        await self.ledger.prepare()
        await self.ledger.admit([ticket(i) for i in range(n)], limit=1000, position=0)

    async def claim(self, lease: str, n: int = 1, lease_ms: int = 60_000, attempts: int = 3) -> list[str]:
        claimed = await self.ledger.next_tickets(lease.partition("/")[0], lease, n, lease_ms, attempts)
        return [c.ticket.group_id for c in claimed]

    async def publish(self, lease: str, *group_ids: str, versions: Sequence[int] = (0, 0), reward: float = 0.5) -> None:
        for group_id in group_ids:
            assert await self.ledger.publish(group(group_id, versions, reward), lease, time.time())

    async def batch(self, step: int, *group_ids: str) -> None:
        ready, _ = await self.ledger.ready_groups("0", block_ms=0)
        await self.ledger.batch(step, [next(r for r in ready if r.group_id == i) for i in group_ids])

    async def write(self) -> None:
        entries, self._cursor = await self.bus.read_entries("events", (Event, Transition), self._cursor, count=10_000)
        lines = [
            (
                "transitions.jsonl" if isinstance(e.message, Transition) else "events.jsonl",
                transition_line(e.id, e.message)
                if isinstance(e.message, Transition)
                else EventLine(e.message.actor, e.message.kind, e.message.time, e.message.data, e.id),
            )
            for e in entries
        ]
        for name, line in lines:
            append(self.run_dir / name, line)


def append(path: Path, *lines: Any) -> None:
    with path.open("ab") as file:
        file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)


def play(url: str, run_dir: Path, story: Callable[[Story], Awaitable[None]], *, write: bool = True) -> str:
    """Let ``story`` happen on a ledger of its own; returns its run id."""
    run_id = f"inspect-{next(_run_ids)}"

    async def run() -> None:
        bus = await connect(url, run_id)
        made = Story(bus, run_dir)
        await story(made)
        if write:
            await made.write()
        await bus.close()

    asyncio.run(run())
    return run_id


def inspect(run_dir: Path, *args: object) -> Result:
    return CliRunner().invoke(cli.app, ["inspect", str(run_dir), *(str(arg) for arg in args)])


def found(run_dir: Path, *args: object) -> dict[str, Any]:
    result = inspect(run_dir, *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def line(kind: str, *groups: str, by: str = "", step: int = 0, **more: Any) -> TransitionLine:
    return TransitionLine(f"{1_000_000 + 1000 * next(_numbers)}-0", kind, groups, by=by, step=step, **more)


async def two_steps(story: Story) -> None:
    """0 and 1 trained in step 1, 2 batched in step 2, 3 in flight."""
    await story.deal(4)
    first = await story.claim("rollout-0/1", 3)
    await story.publish("rollout-0/1", *first[:2], versions=(0, 0, 0), reward=1.0)
    await story.publish("rollout-0/1", first[2], versions=(0, 1), reward=0.0)
    await story.batch(1, *first[:2])
    await story.ledger.commit(1)
    await story.batch(2, first[2])
    await story.claim("rollout-1/2")
