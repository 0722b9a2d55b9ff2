"""Who waits for whom, and the culprit: the nearest cause wins, and is one sentence that names it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bus.messages import Heartbeat, Wait
from bus.waits import WaitKind
from miles_async.monitor.diagnosis import LONG_S, NO_PLACE, Process, Redis, Sight, diagnose, waits

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
Waits = dict[str, list[Wait]]


def wait(kind: WaitKind, seconds: float, *targets: str, **about: int | str) -> Wait:
    """Of somebody who has waited for so many seconds."""
    return Wait(kind=kind, since=NOW - seconds, targets=targets, about=about)


# of a run in which the learner is at work for long
IDLE: Waits = {
    "dealer": [wait(WaitKind.STEP, 14.0, step=5)],
    "rollout-0": [wait(WaitKind.TICKET, 12.0)],
    "rollout-1": [wait(WaitKind.TICKET, 11.0)],
    "broadcaster": [wait(WaitKind.SNAPSHOT, 14.0)],
}


def sight(
    waiting: Waits | None = None,
    states: dict[str, str] | None = None,
    silent: dict[str, float] | None = None,
    redis: Redis = OURS,
) -> Sight:
    beats = [
        Heartbeat(actor=name, role=role, incarnation=1, time=NOW, waits=tuple((waiting or {}).get(name, ())))
        for name, role in ROLES.items()
    ]
    processes = {name: Process(f"pid {pid}", (states or {}).get(name, "running")) for name, pid in PIDS.items()}
    return Sight(NOW, beats, processes, silent or {}, redis)


def test_a_run_in_which_nobody_waits_for_long_has_no_culprit() -> None:
    assert diagnose(sight()) == ""
    assert diagnose(sight({"dealer": [wait(WaitKind.STEP, LONG_S - 0.1, step=5)]})) == ""


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (
            sight(IDLE, {"learner-0": "stopped"}),
            "learner-0 (pid 16) is stopped (SIGSTOP); broadcaster, dealer, rollout-0, rollout-1 wait for it",
        ),
        (
            sight(
                {
                    "router": [wait(WaitKind.TOKEN, 14.0, "engine-1", requests=8)],
                    "rollout-0": [wait(WaitKind.GENERATION, 14.1)],
                }
            ),
            "engine-1: 8 requests in flight, no token for 14 s",
        ),
        (
            sight({"rollout-0": [wait(WaitKind.SLOT, 15.0), wait(WaitKind.REWARD, 12.0)]}),
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
            sight(IDLE | {"learner-0": [wait(WaitKind.CHECKPOINT, 14.0, version=4)]}),
            "learner-0 has waited for checkpoint 4 to be written for 14 s; "
            "broadcaster, dealer, rollout-0, rollout-1 wait for it",
        ),
        (
            sight(
                {
                    "dealer": [wait(WaitKind.STEP, 9.0, step=5)],
                    "learner-0": [wait(WaitKind.GROUPS, 8.0, step=5)],
                    "rollout-0": [wait(WaitKind.TICKET, 8.0)],
                    "rollout-1": [wait(WaitKind.TICKET, 8.0)],
                }
            ),
            "dealer and learner-0 and rollout-0 wait for each other "
            "(dealer for the learner to take step 5, learner-0 for groups for step 5, rollout-0 for the dealer for a ticket)",
        ),
        (
            sight({"router": [wait(WaitKind.ENGINE_UP, 9.0, "engine-0", troubles="engine-0: 3 health checks failed")]}),
            "router has waited for an engine that is up (engine-0: 3 health checks failed) for 9 s",
        ),
    ],
)
def test_the_culprit_is_named(seen: Sight, sentence: str) -> None:
    assert diagnose(seen) == sentence


def test_the_nearest_cause_wins() -> None:
    waiting = IDLE | {"rollout-0": [wait(WaitKind.REWARD, 30.0)]}
    stopped = {"engine-0": "stopped"}
    assert diagnose(sight(waiting, stopped, redis=Redis(7, silent_s=4.0))).startswith("redis")
    assert diagnose(sight(waiting, stopped, {"dealer": 20.0})).startswith("engine-0 (pid 14) is stopped")
    assert diagnose(sight(waiting, silent={"dealer": 20.0})).startswith("dealer (pid 10) has been silent")
    assert "reward" in diagnose(sight(waiting))


def test_an_actor_without_a_place_is_named_with_what_it_asks_for_before_one_that_is_silent() -> None:
    seen = sight({"rollout-0": [wait(WaitKind.TOKEN, 9.0, "engine-1", requests=3)]}, silent={"dealer": 30.0})
    placeless = Process("no place yet: it asks for CPU 1, stage 1", NO_PLACE)
    seen = replace(seen, processes={**seen.processes, "engine-1": placeless})
    said = "engine-1 has no place yet: it asks for CPU 1, stage 1; rollout-0 waits for it"
    assert diagnose(seen) == said


def test_everybody_waits_for_a_redis_that_does_not_answer() -> None:
    found = waits(sight(IDLE, redis=Redis(7, "stopped", 9.0)))
    assert {wait.who for wait in found} == set(ROLES)
    assert {(wait.for_whom, wait.seconds) for wait in found} == {("redis", 9.0)}


def test_the_last_words_of_a_stopped_actor_do_not_count() -> None:
    found = waits(sight(IDLE, {"dealer": "stopped"}))
    assert [wait.who for wait in found] == ["broadcaster", "rollout-0", "rollout-1"]


def test_a_wait_is_for_the_actors_that_it_names_and_else_for_those_of_its_roles_whatever_its_sentence_says() -> None:
    told = {
        "broadcaster": [wait(WaitKind.UPDATE, 9.0, "engine-1", version=4)],
        "dealer": [wait(WaitKind.VERSION_TO_SERVE, 9.0, version=4, serving=3)],
        "learner-0": [wait(WaitKind.CHECKPOINTS, 9.0, root="/runs/dealer/rank 0/engine-0")],
        "engine-0": [wait(WaitKind.SERVER, 9.0, url="http://router:1")],
    }
    assert {found.who: set(found.targets) for found in waits(sight(told))} == {
        "broadcaster": {"engine-1"},
        "dealer": {"broadcaster", "engine-0", "engine-1"},
        "learner-0": set(),
        "engine-0": set(),
    }


def test_who_waits_for_somebody_who_waits_for_the_culprit_follows_it_too() -> None:
    told = IDLE | {"dealer": [wait(WaitKind.VERSION_TO_SERVE, 4.0, version=4, serving=3)]}
    said = "learner-0 (pid 16) is stopped (SIGSTOP); broadcaster, dealer, rollout-0, rollout-1 wait for it"
    assert diagnose(sight(told, {"learner-0": "stopped"})) == said


ABOUT = {"requests": 3, "version": 4, "serving": 3, "step": 3, "used": 3, "limit": 4}
SECONDS = st.floats(0, 1000, allow_nan=False)
WAITS = st.builds(
    lambda kind, seconds, targets: wait(
        kind, seconds, *targets, **{name: ABOUT.get(name, "something") for name in kind.fields}
    ),
    st.sampled_from(WaitKind),
    SECONDS,
    st.lists(st.sampled_from([*ROLES, "engine-7"]), max_size=2),
)
WAITING = st.dictionaries(st.sampled_from(list(ROLES)), st.lists(WAITS, max_size=3))
STATES = st.dictionaries(st.sampled_from(list(ROLES)), st.sampled_from(["stopped", "zombie", "sleeping", "gone"]))
SILENT = st.dictionaries(st.sampled_from(list(ROLES)), SECONDS)


@given(WAITING, STATES, SILENT, SECONDS, st.sampled_from(["", "its memory is full"]))
@example({"dealer": [wait(WaitKind.TOKEN, 5.0, requests=3)]}, {}, {}, 0.0, "")  # of engines that it does not name
def test_whatever_is_seen_a_culprit_is_one_line_and_names_somebody(
    waiting: Waits, states: dict[str, str], silent: dict[str, float], away: float, refusal: str
) -> None:
    seen = sight(waiting, states, silent, Redis(7, silent_s=away, refusal=refusal))
    said = diagnose(seen)
    assert "\n" not in said
    somebody_waits = any(wait.seconds >= LONG_S for wait in waits(seen))
    assert bool(said) or not somebody_waits
    assert not said or any(name in said for name in [*ROLES, "redis"])


@given(st.sampled_from([name for name in ROLES]), WAITING, SILENT)
def test_a_stopped_process_is_always_named(name: str, waiting: Waits, silent: dict[str, float]) -> None:
    assert diagnose(sight(waiting, {name: "stopped"}, silent)).startswith(f"{name} (pid {PIDS[name]}) is stopped")
