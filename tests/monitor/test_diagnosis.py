"""Who waits for whom, and the culprit: the nearest cause wins, and is one sentence that names it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import Heartbeat
from miles_async.monitor.diagnosis import LONG_S, REWARD, Process, Redis, Sight, diagnose, engine_wait, waits

NOW = 1000.0
ROLES = {
    "dealer": "dealer",
    "rollout-0": "rollout",
    "rollout-1": "rollout",
    "router": "router",
    "engine-0": "engine",
    "engine-1": "engine",
    "learner-0": "learner",
    "broadcaster": "broadcaster",
}
PIDS = {name: number for number, name in enumerate(ROLES, 10)}
OURS = Redis(pid=7)
# of a run in which the learner is at work for long
IDLE = {
    "dealer": {"the learner to take step 5": 14.0},
    "rollout-0": {"the dealer for a ticket": 12.0},
    "rollout-1": {"the dealer for a ticket": 11.0},
    "broadcaster": {"a snapshot of the learner": 14.0},
}


def sight(
    waiting: dict[str, dict[str, float]] | None = None,
    states: dict[str, str] | None = None,
    silent: dict[str, float] | None = None,
    redis: Redis = OURS,
) -> Sight:
    beats = []
    for name, role in ROLES.items():
        found = sorted(((whom, NOW - s) for whom, s in (waiting or {}).get(name, {}).items()), key=lambda w: w[1])
        whom, since = found[0] if found else ("", 0.0)
        beat = Heartbeat(actor=name, role=role, pid=1, time=NOW, waits_for=whom, waits_since=since, waits=tuple(found))
        beats.append(beat)
    processes = {name: Process(pid, (states or {}).get(name, "running")) for name, pid in PIDS.items()}
    return Sight(NOW, beats, processes, silent or {}, redis)


def test_a_run_in_which_nobody_waits_for_long_has_no_culprit() -> None:
    assert diagnose(sight()) == ""
    assert diagnose(sight({"dealer": {"the learner to take step 5": LONG_S - 0.1}})) == ""


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (
            sight(IDLE, {"learner-0": "stopped"}),
            "learner-0 (pid 16) is stopped (SIGSTOP); broadcaster, dealer, rollout-0, rollout-1 wait for it",
        ),
        (
            sight({"router": {engine_wait("engine-1", 8): 14.0}, "rollout-0": {"engines to generate": 14.1}}),
            "engine-1: 8 requests in flight, no token for 14 s",
        ),
        (
            sight({"rollout-0": {"engines to finish a group": 15.0, REWARD: 12.0}}),
            "rollout-0: the reward function has not answered for 12 s",
        ),
        (
            sight(IDLE, redis=Redis(77, "stopped", 9.0)),
            "redis (pid 77) has not answered for 9 s; it is stopped (SIGSTOP)",
        ),
        (sight(IDLE, redis=Redis(None, silent_s=9.0)), "redis has not answered for 9 s"),
        (
            sight(IDLE, redis=Redis(77, refusal="its memory is full (10 of 10 MB)")),
            "redis (pid 77) refuses writes: its memory is full (10 of 10 MB)",
        ),
        (
            sight(IDLE, silent={"learner-0": 14.0}),
            "learner-0 (pid 16) has been silent for 14 s; broadcaster, dealer, rollout-0, rollout-1 wait for it",
        ),
        (
            sight(IDLE),
            "learner-0 (pid 16) is busy and has given nothing for 14 s; broadcaster, dealer, rollout-0, rollout-1 wait for it",
        ),
        (
            sight(IDLE | {"learner-0": {"checkpoint 4 to be written": 14.0}}),
            "learner-0 has waited for checkpoint 4 to be written for 14 s; "
            "broadcaster, dealer, rollout-0, rollout-1 wait for it",
        ),
        (
            sight({"dealer": {"the learner to take step 5": 9.0}, "learner-0": {"rank 0, or dealer": 8.0}}),
            "dealer and learner-0 wait for each other (dealer for the learner to take step 5, learner-0 for rank 0, or dealer)",
        ),
        (
            sight({"router": {"an engine that is up (engine-0: 3 health checks failed)": 9.0}}),
            "router has waited for an engine that is up (engine-0: 3 health checks failed) for 9 s",
        ),
    ],
)
def test_the_culprit_is_named(seen: Sight, sentence: str) -> None:
    assert diagnose(seen) == sentence


def test_the_nearest_cause_wins() -> None:
    waiting = IDLE | {"rollout-0": {REWARD: 30.0}}
    stopped = {"engine-0": "stopped"}
    assert diagnose(sight(waiting, stopped, redis=Redis(7, silent_s=4.0))).startswith("redis")
    assert diagnose(sight(waiting, stopped, {"dealer": 20.0})).startswith("engine-0 (pid 14) is stopped")
    assert diagnose(sight(waiting, silent={"dealer": 20.0})).startswith("dealer (pid 10) has been silent")
    assert "reward" in diagnose(sight(waiting))


def test_everybody_waits_for_a_redis_that_does_not_answer() -> None:
    found = waits(sight(IDLE, redis=Redis(7, "stopped", 9.0)))
    assert {wait.who for wait in found} == set(ROLES)
    assert {(wait.for_whom, wait.seconds) for wait in found} == {("redis", 9.0)}


def test_the_last_words_of_a_stopped_actor_do_not_count() -> None:
    found = waits(sight(IDLE, {"dealer": "stopped"}))
    assert [wait.who for wait in found] == ["broadcaster", "rollout-0", "rollout-1"]


WHOM = st.sampled_from(
    [
        *(f"{name} to do something" for name in ROLES),
        *(whom for waiting in IDLE.values() for whom in waiting),
        engine_wait("engine-1", 3),
        "groups for step 3",
        "an engine to serve",
        "engines engine-0, engine-1 to take version 4",
        "rank 0 to batch step 3",
        "the router, or an engine behind it",
        REWARD,
        "room in Redis (3 of 4 MB used)",
        "something else",
    ]
)
SECONDS = st.floats(0, 1000, allow_nan=False)
WAITING = st.dictionaries(st.sampled_from(list(ROLES)), st.dictionaries(WHOM, SECONDS, max_size=3))
STATES = st.dictionaries(st.sampled_from(list(ROLES)), st.sampled_from(["stopped", "zombie", "sleeping", "gone"]))
SILENT = st.dictionaries(st.sampled_from(list(ROLES)), SECONDS)


@given(WAITING, STATES, SILENT, SECONDS, st.sampled_from(["", "its memory is full"]))
def test_whatever_is_seen_a_culprit_is_one_line_and_names_somebody(
    waiting: dict[str, dict[str, float]], states: dict[str, str], silent: dict[str, float], away: float, refusal: str
) -> None:
    seen = sight(waiting, states, silent, Redis(7, silent_s=away, refusal=refusal))
    said = diagnose(seen)
    assert "\n" not in said
    somebody_waits = any(wait.seconds >= LONG_S for wait in waits(seen))
    assert bool(said) or not somebody_waits
    assert not said or any(name in said for name in [*ROLES, "redis"])


@given(st.sampled_from([name for name in ROLES]), WAITING, SILENT)
def test_a_stopped_process_is_always_named(
    name: str, waiting: dict[str, dict[str, float]], silent: dict[str, float]
) -> None:
    assert diagnose(sight(waiting, {name: "stopped"}, silent)).startswith(f"{name} (pid {PIDS[name]}) is stopped")
