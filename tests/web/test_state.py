"""The state of a run as the page has it, of one that goes on, has ended, was killed or is damaged."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import msgspec
from engine_lines import set_engine
from web_runs import append, made_run, other_lines, step_line

from bus import Ledger, connect
from bus.messages import Heartbeat, Wait
from bus.waits import WaitKind
from miles_async.monitor.record_lines import EventLine
from miles_async.monitor.runs_table import runs
from miles_async.runs.lock import RunLock
from miles_async.runs.state import RunState, write
from miles_async.web.followed import FollowedRun
from miles_async.web.live import stream
from miles_async.web.opened import OpenRun
from miles_async.web.overview import LEFT_OUT, Overview
from miles_async.web.places import Places
from miles_async.web.state import document


def looked_at(run_dir: Path) -> FollowedRun:
    run = FollowedRun(run_dir)
    run.refresh()
    return run


async def with_actors(url: str, run_id: str) -> None:
    """A dealer that is busy, a learner that waits for workers, an engine that serves."""
    bus, now = await connect(url, run_id), time.time()
    await Ledger(bus).prepare()
    wait = Wait(kind=WaitKind.GROUPS, since=now - 70, about={"step": 4})
    for name, role, waits in (
        ("dealer", "dealer", ()),
        ("rollout-0", "rollout", ()),
        ("learner-0", "learner", (wait,)),
    ):
        await bus.beat(Heartbeat(actor=name, role=role, incarnation=1, time=now, where="pid 1", waits=waits))
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 2, "serving")
    await bus.close()


def test_a_living_run_says_who_is_busy_who_waits_for_whom_and_what_engines_serve(
    tmp_path: Path, redis_url: str
) -> None:
    run_dir = made_run(tmp_path / "run")
    write(run_dir, RunState("web-state", 1, os.getpid(), bus_url=redis_url))
    lock = RunLock(run_dir)
    lock.take()
    asyncio.run(with_actors(redis_url, "web-state"))
    append(
        run_dir / "events.jsonl",
        EventLine("router", "engine_down", 5.0, {"engine": "engine-0", "reason": "it is gone"}),
    )
    found = document(looked_at(run_dir))
    lock.release()
    assert (found["state"], found["step"], found["num_steps"]) == ("running", 3, 3)
    actors = {actor["actor"]: actor for actor in found["actors"]}
    assert actors["dealer"]["state"] == "busy" and actors["learner-0"]["state"] == "waits"
    assert actors["learner-0"]["for"] == "groups for step 4" and actors["learner-0"]["seconds"] >= 70
    assert found["waits"][0]["who"] == "learner-0" and found["waits"][0]["targets"] == ["rollout-0"]
    engine = found["engines"][0]
    assert (engine["name"], engine["version"], engine["state"], engine["behind"]) == ("engine-0", 2, "serving", 1)
    assert engine["why"]["text"] == "engine=engine-0 reason=it is gone" and engine["requests_per_s"] == 12.0
    assert (engine["running"], engine["tokens_per_s"], engine["busy"]) == (24.0, 1234.0, 0.75)
    text = msgspec.json.encode(found).decode()
    assert redis_url not in text and "127.0.0.1" not in text


def test_an_ended_run_has_the_figures_of_its_summary_and_a_killed_one_those_of_its_record(tmp_path: Path) -> None:
    ended = document(looked_at(made_run(tmp_path / "ended", steps=6, finished=True)))
    assert (ended["state"], ended["step"], ended["ledger"]["trained"], ended["balanced"]) == ("finished", 6, 12, True)
    killed = document(looked_at(made_run(tmp_path / "killed", steps=6)))
    assert (killed["state"], killed["ledger"], killed["balanced"]) == ("dead", None, None)
    for found in (ended, killed):
        assert found["figures"]["samples_per_s"] == 4.0 and found["figures"]["max_lag"] == 3.0


def test_what_is_damaged_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    run_dir = made_run(tmp_path / "run")
    (run_dir / "config.toml").write_text("[run]\nno toml")
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    append(run_dir / "metrics.jsonl", step_line(4))
    found = document(looked_at(run_dir))
    assert found["step"] == 4
    assert any("config.toml" in text for text in found["troubles"])
    assert any("metrics.jsonl line 11 cannot be read" in text for text in found["troubles"])


def test_a_run_whose_record_was_rewritten_is_read_again(tmp_path: Path) -> None:
    run_dir = made_run(tmp_path / "run", steps=5)
    run = looked_at(run_dir)
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run_dir / "other").write_bytes(b"".join(lines[:7]))
    (run_dir / "other").replace(run_dir / "metrics.jsonl")
    run.refresh()
    assert (run.generation, run.progress.step) == (1, 2)
    assert run.series.points("raw_reward").steps == [1, 2] and len(run.events) == 1
    append(run_dir / "metrics.jsonl", step_line(3), *other_lines(3))
    run.refresh()
    assert (run.generation, run.progress.step, run.series.points("rate/samples_per_s").steps) == (1, 3, [1, 2, 3])


def test_the_list_has_a_row_for_each_run_and_says_why_one_cannot_be_read(tmp_path: Path) -> None:
    made_run(tmp_path / "ended", finished=True)
    made_run(tmp_path / "killed")
    bad = made_run(tmp_path / "bad", finished=True)
    (bad / "summary.json").write_text("{")
    os.utime(bad / "summary.json", (2e9, 2e9))
    overview = Overview(Places(tmp_path))
    rows = overview.rows()
    assert rows[0]["run"] == "bad"  # which changed last
    found = {row["run"]: row for row in rows}
    assert {name: row["state"] for name, row in found.items()} == {
        "ended": "finished",
        "killed": "dead",
        "bad": "damaged",
    }
    assert "summary.json is damaged" in found["bad"]["trouble"]
    assert found["ended"]["samples_per_s"] == found["killed"]["samples_per_s"] == 4.0
    append(tmp_path / "killed" / "metrics.jsonl", step_line(4))
    again = {row["run"]: row for row in overview.rows()}
    assert (found["killed"]["step"], again["killed"]["step"]) == (3, 4)
    table = {row["run"]: row for row in runs(tmp_path, time.time())}
    for name, row in again.items():  # what `miles-async runs` says
        assert row == {key: value for key, value in table[name].items() if key not in LEFT_OUT}


async def test_a_step_is_told_to_who_looks_on_and_nothing_is_told_twice(tmp_path: Path) -> None:
    run_dir = made_run(tmp_path / "run")
    events = stream(OpenRun(run_dir), threading.Event())
    assert (await anext(events)).startswith(b"retry:")
    async with asyncio.timeout(60):
        first = await anext(events)
        append(run_dir / "metrics.jsonl", step_line(4))
        second = await anext(events)
    await events.aclose()
    steps = [msgspec.json.decode(event.split(b"data: ")[1])["step"] for event in (first, second)]
    assert steps == [3, 4]
