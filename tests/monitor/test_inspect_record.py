"""``inspect`` of a run that lives, ended, lost its bus or was rolled back: what it reads, and from where."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from inspected import Story, append, found, inspect, line, play, two_steps

from bus import connect
from miles_async.monitor.group_lives import live
from miles_async.monitor.record_lines import read_transitions
from miles_async.runs.state import STATE_FILE, RunState, write


def test_of_a_living_run_what_is_not_on_disk_is_read_from_the_bus_once_and_left_there(
    redis_url: str, tmp_path: Path
) -> None:
    async def story(story: Story) -> None:
        await story.deal(1)
        await story.claim("rollout-0/1")
        await story.write()  # and not trimmed: these entries are in both places
        await story.publish("rollout-0/1", "0-0-0")
        await story.batch(1, "0-0-0")
        await story.bus.redis.xadd(story.bus.key("events"), {"m": b"junk"})

    run_id = play(redis_url, tmp_path, story, write=False)
    write(tmp_path, RunState(run_id, 1, os.getpid(), bus_url=redis_url))

    async def entries() -> int:
        bus = await connect(redis_url, run_id)
        try:
            return await bus.redis.xlen(bus.key("events"))
        finally:
            await bus.close()

    before = (asyncio.run(entries()), (tmp_path / "transitions.jsonl").read_bytes())
    life = found(tmp_path, "group", "0-0-0")
    assert [m["kind"] for m in life["moments"]] == ["admitted", "claimed", "published", "batched"]
    assert life["note"] == ""
    assert found(tmp_path, "step", 1)["groups"][0]["id"] == "0-0-0"
    assert (asyncio.run(entries()), (tmp_path / "transitions.jsonl").read_bytes()) == before


def test_a_bus_that_does_not_answer_is_said_and_the_file_is_used(redis_url: str, tmp_path: Path) -> None:
    play(redis_url, tmp_path, two_steps)
    write(tmp_path, RunState("gone", 1, os.getpid(), bus_url=f"unix://{tmp_path}/no.sock"))
    result = inspect(tmp_path, "group", "0-1-0")
    assert result.exit_code == 0
    assert "trained in step 1" in result.stdout
    assert "note: without what is not on disk yet" in result.stdout
    assert "no.sock" in found(tmp_path, "step", 2)["note"]


def test_a_supervisor_file_emptied_by_a_power_cut_is_none(redis_url: str, tmp_path: Path) -> None:
    play(redis_url, tmp_path, two_steps)
    (tmp_path / STATE_FILE).write_bytes(b"\0" * 80)
    assert "trained in step 1" in inspect(tmp_path, "group", "0-1-0").stdout


def test_a_step_that_a_rollback_took_back_is_shown_as_it_was_and_as_it_is(tmp_path: Path) -> None:
    lines = [
        line("admitted", "0-0-0", "0-1-0"),
        line("published", "0-0-0", by="w/1", rewards=(1.0,), versions=((0, 2),)),
        line("published", "0-1-0", by="w/1", rewards=(0.0,), versions=((0, 2),)),
        line("batched", "0-0-0", step=1),
        line("batched", "0-1-0", step=2),
    ]
    append(tmp_path / "transitions.jsonl", *lines)
    again = line("batched", "0-1-0", step=1)  # a power cut took both records
    append(tmp_path / "transitions.jsonl", again)
    first, second = found(tmp_path, "step", 1), found(tmp_path, "step", 2)
    assert [row["id"] for row in first["groups"]] == ["0-1-0"]
    assert first["earlier"] == [{"batched": lines[3].time, "groups": ["0-0-0"]}]
    assert (first["undone"], second["undone"]) == (False, True)
    assert "lost by the ledger: 0-0-0" in inspect(tmp_path, "step", 1).stdout
    life = found(tmp_path, "group", "0-0-0")
    assert (life["state"], life["moments"][-1]["kind"]) == ("ready", "undone")

    append(tmp_path / "transitions.jsonl", line("reconciled", "0-1-0", "0-0-0", step=2))
    assert found(tmp_path, "step", 1)["trained"] is not None
    assert found(tmp_path, "group", "0-0-0")["state"] == "trained"


def test_a_drop_that_a_rollback_took_back_is_none(tmp_path: Path) -> None:
    drop = line("dropped", "0-0-0", reason="too_old", lengths=(4,))
    append(tmp_path / "transitions.jsonl", line("admitted", "0-0-0"), drop, line("admitted", "0-0-0"))
    assert found(tmp_path, "drops")["total"] == 0
    append(tmp_path / "transitions.jsonl", line("dropped", "0-0-0", reason="too_old"))
    assert (found(tmp_path, "drops")["total"], found(tmp_path, "drops")["without_lengths"]) == (1, 1)


def test_the_state_of_every_group_is_the_ledgers(redis_url: str, tmp_path: Path) -> None:
    play(redis_url, tmp_path, two_steps)
    lives = live((f"0-{i}-0" for i in range(4)), read_transitions(tmp_path))
    assert [life.state for life in lives.values()] == ["trained", "trained", "batched", "in flight"]
