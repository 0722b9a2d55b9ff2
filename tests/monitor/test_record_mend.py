"""The record of a run holds each step and each entry once, and a line that cannot be read ends no launch."""

from __future__ import annotations

import asyncio
import io
import json
import math
from pathlib import Path

import msgspec
import pytest
from monitored import close, config, learner_steps, started, step_metrics, train

from actors.runtime.placement.base import Ending
from actors.runtime.placement.local import LocalPlacement
from actors.runtime.watch import Watch
from bus import Ledger, connect
from bus.lives import Lives
from bus.messages import Event, Metrics, ReadyGroup, Transition
from bus.server import RedisServer
from miles_async.cli.load import parse
from miles_async.monitor import Monitor
from miles_async.monitor.record_lines import last_entry, read_events, read_metrics, read_transitions


def damage(path: Path, line: int, content: bytes = b"rubbish\n") -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = content
    path.write_bytes(b"".join(lines))


def test_steps_that_are_trained_again_are_in_the_metrics_once(tmp_path: Path) -> None:
    """After a kill of the launch (a new start), and of the learner alone (the same start)."""
    first = started(tmp_path)
    train(first, 1, 20, begin=100.0)
    first.on_metrics(Metrics(actor="evaluator", step=15, time=121.0, values={"eval/math": 0.25}))
    close(first)
    second = started(tmp_path, resumed=True)
    train(second, 11, 14, begin=200.0)
    train(second, 13, 16, begin=300.0)
    close(second)
    lines = list(read_metrics(tmp_path))
    steps = [(line.step, line.time) for line in lines if line.actor == "learner-0"]
    assert steps == (
        [(step, 99.0 + step) for step in range(1, 11)]
        + [(11, 200.0), (12, 201.0)]
        + [(step, 287.0 + step) for step in range(13, 17)]
    )
    assert [(line.actor, line.step) for line in lines if line.actor == "evaluator"] == [("evaluator", 15)]
    assert not list(tmp_path.glob("*.partial"))


def test_tensorboard_shows_steps_that_are_trained_again_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = started(tmp_path, tensorboard=True)
    train(first, 1, 5, begin=100.0)
    first.on_metrics(Metrics(actor="evaluator", step=4, time=104.5, values={"eval/math": 0.25}))
    close(first)
    second = started(tmp_path, resumed=True, tensorboard=True)
    for step in (3, 4):
        second.on_metrics(step_metrics(step, 200.0 + step, 0.9))
    close(second)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rewards = [(point.step, round(point.value, 3)) for point in board.Scalars("train/raw_reward")]
    assert rewards == [(1, 0.01), (2, 0.02), (3, 0.9), (4, 0.9)]
    assert [(point.step, point.value) for point in board.Scalars("eval/math")] == [(4, 0.25)]


def test_a_reward_that_is_not_finite_is_on_record_and_can_be_read(tmp_path: Path) -> None:
    group = ReadyGroup(
        group_id="0-1-0",
        payload_key="p",
        oldest_version=0,
        newest_version=0,
        n_tokens=7,
        published=1.0,
        lengths=(3, 4),
        rewards=(math.nan, 1.0),
        versions=((0, 7),),
    )
    published = Transition(kind="published", group_ids=("0-1-0",), by="rollout-0/1", group=group)
    first = started(tmp_path)
    first.on_transition(published, "1000-0")
    close(first)
    second = started(tmp_path, resumed=True)
    assert second.written_entry == "1000-0"
    close(second)
    (line,) = read_transitions(tmp_path)
    assert line.rewards == (None, 1.0)


@pytest.mark.parametrize(
    "content", [b"rubbish\n", b'{"id":"x-y","kind":"dropped","groups":[]}\n', b"\x00\xff\n", b"\n"]
)
def test_a_line_that_cannot_be_read_is_named_and_set_aside_and_the_launch_goes_on(
    tmp_path: Path, content: bytes
) -> None:
    first = started(tmp_path)
    train(first, 1, 3, begin=100.0)
    for number in range(1, 4):
        first.on_transition(Transition(kind="dropped", group_ids=(f"0-{number}-0",), reason="r"), f"{number}-0")
        first.on_event(Event(actor="a", kind=f"kind-{number}", time=1.0), f"{number}-1")
    close(first)
    for name in ("metrics.jsonl", "events.jsonl", "transitions.jsonl"):
        damage(tmp_path / name, 2, content)
    monitor = Monitor(stream=(said := io.StringIO()))
    monitor.start(config(tensorboard=False, live="off"), tmp_path, True)
    close(monitor)
    for name in ("metrics.jsonl", "events.jsonl", "transitions.jsonl"):
        assert f"{tmp_path / name} line 2: " in said.getvalue()
        assert (tmp_path / f"{name}.damaged").read_bytes() == content
    assert learner_steps(tmp_path) == [2, 3]  # the first line of the metrics is the monitor's own
    assert [event.kind for event in read_events(tmp_path)] == ["kind-1", "kind-3", *["record_damaged"] * 3]
    assert [line.groups for line in read_transitions(tmp_path)] == [("0-1-0",), ("0-3-0",)]
    assert last_entry(tmp_path) == "3-1"


def test_an_entry_is_taken_in_once_also_where_a_cause_of_death_is_asked_for(redis_url: str, tmp_path: Path) -> None:
    """Who asks reads from where the pump reads, at the same time."""
    plain = parse('[model]\nhf_checkpoint = "here"\n[data]\nprompt_data = "here"', check=False)
    quiet = msgspec.structs.replace(plain.monitor, live="off", tensorboard=False)
    run = msgspec.structs.replace(plain, monitor=quiet)

    async def play() -> None:
        bus = await connect(redis_url, "run-of-deaths")
        ledger = Ledger(bus)
        await ledger.prepare()
        monitor = Monitor(stream=io.StringIO())
        monitor.start(run, tmp_path, False)
        watch = Watch(bus, ledger, Lives(bus), monitor, run, LocalPlacement(), RedisServer(tmp_path / "redis"))
        ended = Ending(False, "exit code 1")
        for number in range(30):
            asked = [asyncio.create_task(watch.cause_of_death("learner-0", ended)) for _ in range(3)]
            await bus.publish("events", Event(actor="learner-0", kind="died", time=1.0, data={"n": number}))
            await bus.publish("events", Transition(kind="released", group_ids=(f"0-{number}-0",)))
            asked.append(asyncio.create_task(watch.cause_of_death("learner-0", ended)))
            await asyncio.gather(*asked)
        await watch.close(bus_answers=True)
        monitor.finish("stopped", {})
        await bus.close()
        assert monitor.progress.events["died"] == 30

    asyncio.run(play())
    assert [event.data["n"] for event in read_events(tmp_path) if event.kind == "died"] == list(range(30))
    assert [line.groups for line in read_transitions(tmp_path)] == [(f"0-{number}-0",) for number in range(30)]
    assert json.loads((tmp_path / "summary.json").read_text())["events"] == {"died": 30}
