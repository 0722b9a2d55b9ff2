"""``inspect``: the life of a group, a step, an actor and the drops, as a real ledger recorded them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from inspected import Story, append, found, inspect, play, two_steps
from typer.testing import Result

from bus.messages import Begun, Event
from bus.quarantine import Quarantine
from miles_async.monitor.inspect_show import at
from miles_async.monitor.record_lines import EventLine, TransitionLine


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in parts), result.stderr


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


def test_a_groups_first_token_its_last_and_its_rewards_are_told_where_its_worker_knew_them(tmp_path: Path) -> None:
    line = TransitionLine("9500-0", "published", ("0-0-0",), by="rollout-0/1")
    known = msgspec.structs.replace(line, begun=Begun(first_token_at=7.25), generated=8.5, graded=9.0)
    append(tmp_path / "transitions.jsonl", TransitionLine("7000-0", "claimed", ("0-0-0",), by="rollout-0/1"), known)
    moments = found(tmp_path, "group", "0-0-0")["moments"]
    assert [(m["kind"], m["time"]) for m in moments] == [
        ("claimed", 7.0),
        ("first_token", 7.25),
        ("generated", 8.5),
        ("graded", 9.0),
        ("published", 9.5),
    ]
    text = inspect(tmp_path, "group", "0-0-0").stdout
    assert "+0.250 s" in text and "its first token" in text
    append(tmp_path / "transitions.jsonl", msgspec.structs.replace(line, groups=("0-1-0",)))  # of an earlier version
    assert [m["kind"] for m in found(tmp_path, "group", "0-1-0")["moments"]] == ["published"]


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-0.5, "-0.500 s"), (3.25, "+3.250 s"), (200.1, "+3 min 20.1 s"), (7507.0, "+2 h 05 min 07 s")],
)
def test_times_are_from_the_runs_start(seconds: float, text: str) -> None:
    assert at(1000.0 + seconds, 1000.0) == text
