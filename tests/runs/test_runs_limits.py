"""Whole runs at their limits: a prompt that kills its workers, a learner that stands still, a Redis that is full."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import redis
from launching import (
    TINY,
    ask_status,
    begin,
    bus_url,
    events,
    launch,
    left_behind,
    pid_of,
    recording_environment,
    summary,
    wait_for_step,
    wait_until,
    write_config,
)

from miles_async.monitor.record_lines import read_transitions


def test_a_prompt_that_kills_its_workers_is_given_up_and_takes_no_other_with_it(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 10},
        rollout=TINY["rollout"] | {"num_workers": 2, "lease_s": 5.0},
        topology={"rollout": "poisoned_worker.PoisonedWorker"},
    )
    run_dir = tmp_path / "run"
    result = launch(config, run_dir, env=recording_environment())
    assert result.returncode == 0, result.stderr
    found = summary(run_dir)
    assert (found["status"], found["steps"], found["balanced"]) == ("finished", 10, True)
    assert found["ledger"]["trained"] == 80
    assert found["ledger"]["dropped"] == {"worker_died": 1}  # the poison, and none of those that were in flight with it
    (letter,) = events(run_dir, "dead_letter")
    assert letter["data"]["prompt"] and len(letter["data"]["causes"]) == 3
    (dropped,) = [line for line in read_transitions(run_dir) if line.kind == "dropped"]
    assert list(dropped.groups) == [letter["data"]["group"]]
    assert left_behind(run_dir) == []


def test_a_learner_that_stands_still_or_a_full_redis_stops_admission_and_loses_nothing(tmp_path: Path) -> None:
    max_lag, batch, steps = 2, 8, 60
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": steps, "heartbeat_timeout_s": 300.0},
        staleness={"max_lag": max_lag},
        checkpoint={"save_interval": 5, "save_hf": False},
    )
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    wait_for_step(run_dir, 3, process)
    client: Any = redis.Redis.from_url(bus_url(run_dir))

    # the learner stands still: what is open grows up to what may be open, and no further
    learner = pid_of(run_dir, "learner-0")
    os.kill(learner, signal.SIGSTOP)
    # or for its snapshot to reach the engines, if it was stopped before it had one
    ended = ("waits for the learner", "waits for engines to serve")
    wait_until(lambda: doing(run_dir, "dealer").startswith(ended), "end of admission", process)
    (samples,) = [key for key in client.keys("*samples")]
    still: dict[str, int] = {}
    kept = 0

    def generation_has_ended() -> bool:
        nonlocal still, kept
        still, kept = ledger(run_dir), client.xlen(samples)  # of one moment, if nothing has changed after it
        return still == ledger(run_dir) and still["in_flight"] + still["waiting"] == 0

    wait_until(generation_has_ended, "end of generation", process)
    assert still["ready"] <= (max_lag + 1) * batch
    assert kept == still["ready"] + still["batched"]
    memory = client.info("memory")["used_memory"]
    os.kill(learner, signal.SIGCONT)
    wait_for_step(run_dir, 20, process)

    # Redis may use less than it does: nothing is dealt and no payload written, what is ready is trained
    client.config_set("maxmemory", memory // 2)
    # for room; or still for what it waited for, if Redis has taken no news of that since
    full = ("waits for room in Redis", *ended)
    wait_until(lambda: doing(run_dir, "dealer").startswith(full), "dealer that waits", process)
    dealt = ledger(run_dir)["dealt"]
    wait_until(lambda: doing(run_dir, "learner-0").startswith("waits for groups"), "end of training", process)
    assert ledger(run_dir)["dealt"] == dealt and ledger(run_dir)["trained"] < steps * batch
    client.config_set("maxmemory", 0)
    client.close()

    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = summary(run_dir)
    assert (found["status"], found["steps"], found["balanced"]) == ("finished", steps, True)
    assert found["ledger"]["dealt"] == found["ledger"]["trained"] == steps * batch
    assert events(run_dir, "restarted") == [] and left_behind(run_dir) == []


def doing(run_dir: Path, actor: str) -> str:
    """What ``status`` says that ``actor`` does."""
    return next(a["doing"] for a in ask_status(run_dir)["actors"] if a["actor"] == actor)


def ledger(run_dir: Path) -> dict[str, int]:
    return ask_status(run_dir)["ledger"]
