"""``inspect``: the life of a group, a step, an actor and the drops, as a real ledger recorded them; live and ended runs."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from bus import Bus, Ledger, connect
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Event, Group, Sample, Ticket, Transition
from bus.quarantine import Quarantine
from miles_async.cli import app as cli
from miles_async.monitor.inspect_show import at
from miles_async.monitor.lives import live
from miles_async.monitor.record_lines import EventLine, TransitionLine, read_transitions, transition_line
from miles_async.runs.state import STATE_FILE, RunState, write

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


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in parts), result.stderr


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


def test_a_trained_groups_life_is_told_from_admission_to_the_checkpoint(redis_url: str, tmp_path: Path) -> None:
    play(redis_url, tmp_path, two_steps)
    life = found(tmp_path, "group", "0-1-0")
    assert [m["kind"] for m in life["moments"]] == ["admitted", "claimed", "published", "batched", "trained"]
    assert (life["state"], life["step"], life["lag"], life["mean_reward"]) == ("trained", 1, 0, 1.0)
    claimed, published = life["moments"][1:3]
    assert (claimed["by"], claimed["attempt"]) == ("rollout-0/1", 1)
    assert (published["lengths"], published["versions"]) == ([3], [[0, 3]])
    assert abs(published["time"] - time.time()) < 60  # absolute
    text = inspect(tmp_path, "group", "0-1-0").stdout
    assert "group 0-1-0: trained in step 1, lag 0" in text
    assert "tokens by v0: 3" in text


def test_a_step_lists_its_groups_in_order_with_versions_and_lag(redis_url: str, tmp_path: Path) -> None:
    play(redis_url, tmp_path, two_steps)
    first, second = found(tmp_path, "step", 1), found(tmp_path, "step", 2)
    assert [row["id"] for row in first["groups"]] == ["0-0-0", "0-1-0"]
    assert first["trained"] >= first["batched"]
    assert (second["trained"], second["earlier"]) == (None, [])
    assert second["groups"][0]["versions"] == [[0, 1], [1, 1]]
    assert (second["max_lag"], second["mean_lag"], second["mean_reward"]) == (1, 0.5, 0.0)
    text = inspect(tmp_path, "step", 2).stdout
    assert "in no durable checkpoint yet" in text
    assert "0..1" in text


def test_a_dead_letter_tells_the_cause_of_every_attempt(redis_url: str, tmp_path: Path) -> None:
    async def story(story: Story) -> None:
        await story.deal(1)
        await story.claim("rollout-0/1")
        await story.ledger.fail("0-0-0", "rollout-0/1", "engine", "it is gone", lengths=[7])
        await story.claim("rollout-0/1")
        await story.ledger.release("rollout-0/1", "the worker died")
        await story.claim("rollout-0/2")
        await story.ledger.fail("0-0-0", "rollout-0/2", "reward_timeout", "after 5 s", lengths=[9])
        letters, _ = await story.ledger.dead_letters("0")
        causes.extend(letters[0][0].causes)

    causes: list[str] = []
    play(redis_url, tmp_path, story)
    data = {"group": "0-0-0", "reason": "reward_timeout", "causes": causes, "prompt": "2+2="}
    append(tmp_path / "events.jsonl", EventLine("supervisor", "dead_letter", time.time(), data))
    life, drops = found(tmp_path, "group", "0-0-0"), found(tmp_path, "drops")
    assert life["state"] == "dropped"
    assert life["causes"] == causes  # as the ledger had them
    assert len(causes) == 3
    assert life["dead_letter"]["prompt"] == "2+2="
    assert drops["reasons"] == {"reward_timeout": 1}
    assert (drops["latest"][0]["lengths"], drops["latest"][0]["causes"]) == ([9], causes)
    assert drops["dead_letters"][0]["causes"] == causes
    for text in (inspect(tmp_path, "group", "0-0-0").stdout, inspect(tmp_path, "drops").stdout):
        assert "rollout-0/1: the worker died" in text
        assert "2+2=" in text


def test_a_quarantined_group_is_told_with_its_cause_and_is_no_part_of_its_steps_figures(
    redis_url: str, tmp_path: Path
) -> None:
    async def story(story: Story) -> None:
        await story.deal(2)
        await story.claim("rollout-0/1", 2)
        await story.publish("rollout-0/1", "0-0-0", reward=0.25)
        await story.publish("rollout-0/1", "0-1-0", reward=1e6)
        await story.batch(1, "0-0-0", "0-1-0")
        await Quarantine(story.ledger).put(1, "0-1-0", "invalid_reward", "it is too large")
        await story.ledger.commit(1)

    play(redis_url, tmp_path, story)
    life, step, drops = found(tmp_path, "group", "0-1-0"), found(tmp_path, "step", 1), found(tmp_path, "drops")
    assert (life["state"], life["causes"]) == ("dropped", ["step 1: invalid_reward: it is too large"])
    assert step["mean_reward"] == 0.25 and step["trained"] is not None
    assert (drops["total"], drops["reasons"]) == (1, {"quarantined": 1})
    assert "no part of step 1 any more: invalid_reward: it is too large" in inspect(tmp_path, "group", "0-1-0").stdout
    assert "quarantined" in inspect(tmp_path, "step", 1).stdout


def test_a_lease_that_another_worker_took_over_is_told_as_ended(redis_url: str, tmp_path: Path) -> None:
    async def story(story: Story) -> None:
        await story.deal(1)
        for lease, attempts in (("slow/1", 3), ("slower/1", 3), ("other/1", 2)):
            await story.claim(lease, lease_ms=1, attempts=attempts)
            await asyncio.sleep(0.01)
        letters, _ = await story.ledger.dead_letters("0")
        causes.extend(letters[0][0].causes)

    causes: list[str] = []
    play(redis_url, tmp_path, story)
    life = found(tmp_path, "group", "0-0-0")
    assert life["causes"] == causes
    assert [m["by"] for m in life["moments"] if m["kind"] == "lease_ended"] == ["slow/1", "slower/1"]
    assert found(tmp_path, "actor", "slow")["counts"] == {"claimed": 1, "lost": 1}
    assert found(tmp_path, "actor", "slow")["holds"] == []


def test_an_actor_tells_what_it_did_what_it_holds_and_what_befell_it(redis_url: str, tmp_path: Path) -> None:
    async def story(story: Story) -> None:
        await two_steps(story)
        await story.bus.publish("events", Event(actor="rollout-1", kind="died", time=5.0, data={"cause": "killed"}))
        await story.bus.publish("events", Event(actor="dealer", kind="hello", time=6.0))

    play(redis_url, tmp_path, story)
    restarted = EventLine("supervisor", "restarted", 7.0, {"actor": "rollout-1", "cause": "killed"})
    append(tmp_path / "events.jsonl", restarted)
    zero, one = found(tmp_path, "actor", "rollout-0"), found(tmp_path, "actor", "rollout-1")
    assert (zero["counts"], zero["holds"]) == ({"claimed": 3, "published": 3}, [])
    assert [(held["group"], held["by"]) for held in one["holds"]] == [("0-3-0", "rollout-1/2")]
    assert [event["kind"] for event in one["events"]] == ["died", "restarted"]
    assert "holds 0-3-0" in inspect(tmp_path, "actor", "rollout-1").stdout
    assert found(tmp_path, "actor", "dealer")["counts"] == {}


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


def test_a_name_that_is_not_there_is_one_line_with_the_nearest(redis_url: str, tmp_path: Path) -> None:
    play(redis_url, tmp_path, two_steps)
    assert_one_line(inspect(tmp_path, "group", "0-9"), 'no group "0-9"', 'did you mean "0-3-0"')
    assert_one_line(inspect(tmp_path, "step", 7), 'no step "7"', 'did you mean "2"')
    assert_one_line(inspect(tmp_path, "step", "two"), 'no step "two"', "there are 1 to 2")
    assert_one_line(inspect(tmp_path, "actor", "rolout-1"), 'did you mean "rollout-1"')
    assert_one_line(inspect(tmp_path, "actor", "x"), 'no actor "x" (there are: ', "rollout-0, rollout-1")
    assert_one_line(inspect(tmp_path, "grup", "x"), 'did you mean "group"')
    assert_one_line(inspect(tmp_path, "group"), "which group?")
    assert_one_line(inspect(tmp_path, "drops", "x"), "takes no name")
    assert_one_line(inspect(tmp_path / "nowhere", "drops"), "no run here")


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-0.5, "-0.500 s"), (3.25, "+3.250 s"), (200.1, "+3 min 20.1 s"), (7507.0, "+2 h 05 min 07 s")],
)
def test_times_are_from_the_runs_start(seconds: float, text: str) -> None:
    assert at(1000.0 + seconds, 1000.0) == text
