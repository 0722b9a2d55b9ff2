"""A replay records each step as the run did: with its groups, under the bound of that step, with what that masked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from actor_contexts import context
from ledger_steps import deal, make_ready
from stand_in_learner import publish

from actors.replayer import AHEAD, Replayer
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, Ledger
from bus.messages import Batch, Transition
from miles_async.config.schema import Data, Model, Replay, Run, RunConfig, Staleness
from miles_async.monitor.record_lines import TRANSITIONS_FILE, transition_line
from miles_async.recording.recorder import DIRECTORY
from miles_async.recording.segments import Entry, block


async def recorded(bus: Bus, run_dir: Path, *steps: dict[str, Any]) -> list[Batch]:
    """A run of ``steps``, and what it leaves: each has a group whose tokens are of versions 0 and 1, recorded with what is
    given for it; one that does not tick has another such part."""
    ledger, made = Ledger(bus), list[Batch]()
    await publish(ledger, len(steps) + sum(not step.get("ticks", True) for step in steps), 0, 1)
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    parts = iter(ready)
    for number, options in enumerate(steps, 1):
        batch = await ledger.batch(number, [next(parts)], **options)
        if not batch.ticks:
            batch = await ledger.extend(batch, [next(parts)], masked_tokens=options["masked_tokens"])
        made.append(batch)
    entries = await bus.read_entries("events", Transition, "0")
    lines = [msgspec.json.encode(transition_line(entry.id, entry.message)) + b"\n" for entry in entries[0]]
    (run_dir / TRANSITIONS_FILE).write_bytes(b"".join(lines))
    payloads = [await bus.redis.get(group.payload_key) for group in ready]
    kept = [(Entry(g.group_id, "w/1", "published", len(data)), data) for g, data in zip(ready, payloads, strict=True)]
    (run_dir / DIRECTORY).mkdir()
    (run_dir / DIRECTORY / "w-1.seg").write_bytes(block(kept))
    return made


async def replayed(bus: Bus, run_dir: Path, steps: int, **staleness: Any) -> list[Batch]:
    """What a replay records under this configuration."""
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        run=Run(num_steps=steps),
        staleness=Staleness(**staleness),
        replay=Replay(run=str(run_dir)),
    )
    other = Bus(bus.redis, f"{bus.run_id}-again")
    ctx = ActorContext(ActorSpec("dealer-0", "dealer", 0, "", config, run_dir, "", "", other.run_id, 1), other)
    task, ledger = asyncio.create_task(Replayer(ctx).run()), Ledger(other)
    async with asyncio.timeout(60):
        while (await ledger.steps())[0] < steps or not (await _batch(ledger, steps)).ticks:
            if task.done():
                task.result()
            await asyncio.sleep(0.01)
        ctx.stop.set()
        await task
    return [await _batch(ledger, step) for step in range(1, steps + 1)]


async def _batch(ledger: Ledger, step: int) -> Batch:
    found = await ledger.recorded_batch(step)
    assert found is not None
    return found


def without_places(batches: list[Batch]) -> list[Batch]:
    return [msgspec.structs.replace(batch, payload_keys=()) for batch in batches]


async def test_each_step_keeps_the_bound_and_the_mask_of_its_own_launch(bus: Bus, tmp_path: Path) -> None:
    run = await recorded(
        bus,
        tmp_path,
        {"max_lag": 4},
        {"max_lag": 0, "masked_tokens": 1},
        {"max_lag": 1, "masked_tokens": 1, "ticks": False},
        {"max_lag": 3},
    )
    again = await replayed(bus, tmp_path, len(run), max_lag=2, policy="fifo")
    assert without_places(again) == without_places(run)
    assert [(batch.max_lag, batch.masked_tokens) for batch in again] == [(4, -1), (0, 1), (1, 2), (3, -1)]


async def test_a_record_that_does_not_say_under_which_bound_is_replayed_under_that_of_the_configuration(
    bus: Bus, tmp_path: Path
) -> None:
    run = await recorded(bus, tmp_path, {}, {})
    again = await replayed(bus, tmp_path, len(run), max_lag=0, policy="token_mask")
    assert [(batch.max_lag, batch.masked_tokens) for batch in again] == [(0, 0), (0, 1)]


async def until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(60.0):
        while not seen():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_replayer_that_is_far_ahead_says_one_wait_until_the_learner_has_committed(bus: Bus) -> None:
    ctx = context(bus, "dealer")
    replayer = Replayer(ctx)
    await deal(replayer.ledger, 1)
    await replayer.ledger.batch(1, await make_ready(replayer.ledger, 1), max_lag=0, ticks=True)
    looks, steps = [], replayer.ledger.steps

    async def counted() -> tuple[int, int]:
        looks.append(await steps())
        return looks[-1]

    replayer.ledger.steps = counted
    ahead = ctx.config.checkpoint.save_interval + AHEAD
    assert await replayer._may_go_on(ahead)
    far = asyncio.create_task(replayer._may_go_on(ahead + 1))
    await until(lambda: bool(ctx.heartbeat().waits))
    said, seen = ctx.heartbeat().waits, len(looks)
    assert [wait.sentence for wait in said] == ["the learner to take step 1"]
    await ctx.event("anything")
    await until(lambda: len(looks) > seen + 1)
    assert ctx.heartbeat().waits == said  # it has lasted since it began
    await replayer.ledger.commit(1)
    assert await far and not ctx.heartbeat().waits
    ctx.stop.set()
    assert not await replayer._may_go_on(ahead + 2)
