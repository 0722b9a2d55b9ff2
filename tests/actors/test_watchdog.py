"""The watchdog: a stall is told in time and again, a start is none, and nobody is called silent because of others."""

from __future__ import annotations

import time
from typing import Any

import pytest

from actors.runtime.context import wait_for
from actors.runtime.spec import ActorId
from actors.runtime.watchdog import BEGINS_S, Watchdog
from bus.messages import Heartbeat, Metrics, Wait
from bus.waits import WaitKind
from miles_async.config.schema import Data, Engine, Model, Run, RunConfig
from miles_async.monitor.diagnosis import MOVING, NO_PLACE, Process

COUNTS = {"dealt": 8, "ready": 3}
STEP = Metrics(actor="learner-0", step=1, time=0.0, values={"raw_reward": 0.5})


class World:
    """A run of two actors, with a clock of its own."""

    def __init__(self, **run: Any) -> None:
        self.now = 0.0
        self.pids = {"learner-0": 11, "dealer": 12}
        self.incarnations = dict.fromkeys(self.pids, 1)
        self.states: dict[int, str] = {}
        self.quiet: set[str] = set()
        self.redis_loads = False
        self.waits: dict[str, Wait] = {}
        self.nodes: dict[str, str] = {}
        self.beat_at = dict.fromkeys(self.pids, 0.0)
        self.events: list[tuple[float, str, dict[str, Any]]] = []
        self.killed: dict[str, float] = {}
        config = RunConfig(
            model=Model(hf_checkpoint="none"),
            data=Data(prompt_data="none"),
            run=Run(watchdog_s=10.0, heartbeat_timeout_s=20.0, **run),
            engine=Engine(start_timeout_s=50.0),
        )
        self.dog = Watchdog(
            config,
            lambda: [ActorId(name, self.incarnations.get(name, 1)) for name in self.pids],
            self.look,
            lambda: 77,
            clock=lambda: self.now,
            process=self.process,
            redis_loads=lambda: self.redis_loads,
        )

    def process(self, pid: int) -> Process:
        return Process(f"pid {pid}", self.states.get(pid, "running"))

    def look(self) -> dict[str, Process]:
        return {name: self.process(pid) for name, pid in self.pids.items()}

    def live(
        self, seconds: float, counts: dict[str, int] = COUNTS, *, redis: bool = True, refusal: str = ""
    ) -> list[str]:
        """Let time pass as ``Watch`` does; returns the kinds of the events."""
        before = len(self.events)
        for _ in range(round(seconds)):
            self.now += 1.0
            self.dog.asked()
            if redis:
                for name in self.pids.keys() - self.quiet:
                    self.beat_at[name] = self.now
                self.dog.heard([self._beat(name) for name in sorted(self.pids)], counts, refusal)
            self.events += [(self.now, kind, data) for kind, data in self.dog.tick()]
            self.killed |= {actor.name: seconds for actor, seconds in self.dog.overdue().items()}
        return [kind for _, kind, _ in self.events[before:]]

    def _beat(self, name: str) -> Heartbeat:
        role, waits = name.split("-")[0], tuple(wait for who, wait in self.waits.items() if who == name)
        return Heartbeat(
            actor=name, role=role, incarnation=1, time=self.beat_at[name], waits=waits, node=self.nodes.get(name, "")
        )


@pytest.fixture
def world() -> World:
    found = World()
    found.live(2)
    found.dog.metrics(STEP)
    return found


def test_who_gets_no_place_is_named_within_the_watchdogs_time_also_while_the_others_get_on(world: World) -> None:
    world.incarnations["dealer"] = 2  # its machine was lost
    world.quiet.add("dealer")
    world.states[12] = NO_PLACE
    kinds: list[str] = []
    for step in range(45):
        world.dog.metrics(STEP)
        kinds += world.live(1, {"dealt": step})
    assert kinds == ["no_place"]
    (at, _, about) = world.events[-1]
    assert at <= 2 + BEGINS_S + 1 and about["actor"] == "dealer" and about["why"] == "pid 12"


def test_a_run_that_waits_for_the_place_of_one_stalls_and_does_not_wait_for_a_start(world: World) -> None:
    world.incarnations["learner-0"] = 2
    world.quiet.add("learner-0")
    world.states[11] = NO_PLACE
    kinds = world.live(45)
    assert kinds == ["no_place", "stalled"] or kinds == ["stalled", "no_place"]
    stalled = next(data for _, kind, data in world.events if kind == "stalled")
    assert stalled["diagnosis"] == "learner-0 has pid 11"
    assert all(at >= BEGINS_S for at, _, _ in world.events)  # its process may begin until then


def test_a_stall_is_told_once_its_time_is_over_and_again_after_twice_that_time(world: World) -> None:
    assert world.live(9) == []
    assert world.live(1) == ["stalled"]
    assert world.live(9) == []
    assert world.live(1) == ["stalled"]
    assert world.live(35) == ["stalled"]
    assert [data["seconds"] for _, _, data in world.events] == [10, 20, 40]
    assert world.dog.verdict == ""


def test_a_run_that_recovers_says_so_and_is_watched_as_before(world: World) -> None:
    world.live(10)
    assert world.live(1, {"dealt": 9}) == ["moving_again"]
    assert world.live(9, {"dealt": 9}) == []
    assert world.live(1, {"dealt": 9}) == ["stalled"]


def test_whom_an_actor_waits_for_is_asked_of_a_heartbeat_of_after_the_last_move(world: World) -> None:
    world.states[11] = "stopped"
    world.quiet |= {"learner-0", "dealer"}  # the one for good, the other on a machine that is busy
    assert world.live(11) == []
    world.quiet.remove("dealer")
    world.waits["dealer"] = wait_for(WaitKind.STEP, step=3)
    assert world.live(1) == ["stalled"]
    assert world.events[-1][2]["diagnosis"] == "learner-0 (pid 11) is stopped (SIGSTOP); dealer waits for it"


def test_an_actor_that_says_nothing_any_more_does_not_keep_a_stall_secret(world: World) -> None:
    world.quiet.add("dealer")
    assert world.live(14) == []
    assert world.live(1) == ["stalled"]
    assert world.events[-1][2]["diagnosis"].startswith("dealer (pid 12) has been silent")


def test_only_what_really_moved_is_progress(world: World) -> None:
    world.live(9)
    world.dog.metrics(Metrics(actor="router", step=1, time=0.0, values={"router/inflight": 8.0, MOVING: 0.0}))
    world.dog.metrics(Metrics(actor="broadcaster", step=1, time=0.0, values={"weights/bytes": 0.0}))
    assert world.live(1) == ["stalled"]
    world.dog.metrics(Metrics(actor="router", step=1, time=0.0, values={MOVING: 1.0}))
    assert world.live(1) == ["moving_again"]


def test_a_stall_ends_the_run_where_it_is_told_to_with_the_culprit_as_its_reason() -> None:
    world = World(watchdog_exit=True)
    world.live(2)
    world.dog.metrics(STEP)
    world.states[11] = "stopped"
    world.live(9)
    assert world.dog.verdict == ""
    world.live(1)
    assert world.dog.verdict == "nothing moved for 10 s: learner-0 (pid 11) is stopped (SIGSTOP)"


def test_a_redis_that_does_not_answer_is_the_culprit(world: World) -> None:
    world.states[77] = "stopped"
    assert world.live(12, redis=False) == ["stalled"]
    assert world.events[-1][2]["diagnosis"] == "redis (pid 77) has not answered for 9 s; it is stopped (SIGSTOP)"
    assert {wait["for_whom"] for wait in world.events[-1][2]["waits"]} == {"redis"}


def test_a_start_is_no_stall_before_its_own_time_is_over() -> None:
    world = World()
    world.waits["learner-0"] = wait_for(WaitKind.MODEL)
    assert world.live(45) == []
    world.waits["learner-0"] = wait_for(WaitKind.MODEL, since=time.time() - 51.0)
    assert world.live(12) == ["stalled"]


def test_an_actor_that_has_not_been_heard_of_yet_starts() -> None:
    world = World()
    world.pids["engine-0"] = 13
    world.beat_at["engine-0"] = 0.0
    world.quiet.add("engine-0")
    beats = world._beat
    world._beat = lambda name: beats("dealer" if name == "engine-0" else name)  # it sends none
    assert world.live(45) == []
    assert world.killed == {}
    assert "stalled" in world.live(25)


def test_before_the_first_step_what_the_actors_wait_for_counts_as_progress() -> None:
    world = World()
    world.live(9)
    world.waits["dealer"] = wait_for(WaitKind.ENGINE_TO_SERVE, since=0.0)
    assert world.live(9) == []
    assert world.live(2) == ["stalled"]


def test_a_stopped_actor_is_killed_when_its_time_is_over(world: World) -> None:
    world.quiet.add("learner-0")
    world.states[11] = "stopped"
    world.live(19)
    assert world.killed == {}
    world.live(2)
    assert list(world.killed) == ["learner-0"] and world.killed["learner-0"] >= 20.0


def test_an_actor_that_may_still_load_a_model_is_not_killed_for_its_silence(world: World) -> None:
    world.quiet.add("learner-0")
    world.live(45)
    assert world.killed == {}
    world.live(10)
    assert list(world.killed) == ["learner-0"]


@pytest.mark.parametrize("trouble", [{"redis": False}, {"refusal": "its memory is full"}])
def test_nobody_is_silent_because_redis_was_away_or_full(world: World, trouble: dict[str, Any]) -> None:
    world.live(100)
    world.quiet |= {"learner-0", "dealer"}
    world.live(60, **trouble)
    assert world.killed == {}
    world.live(19)
    assert world.killed == {}
    world.live(2)
    assert set(world.killed) == {"learner-0", "dealer"}


def test_a_watchdog_that_was_away_itself_accuses_nobody(world: World) -> None:
    for counter in range(100):
        world.live(1, {"dealt": counter})
    world.now += 1000.0
    assert world.dog.tick() == []
    assert world.dog.overdue() == {}


def test_a_redis_that_loads_its_data_is_no_stall_and_makes_nobody_silent(world: World) -> None:
    world.redis_loads = True
    assert world.live(100, redis=False) == [] and not world.killed
    world.redis_loads = False
    assert world.live(9, redis=False) == [] and not world.killed
    assert world.live(1, redis=False) == ["stalled"]


def test_the_words_of_an_earlier_life_are_no_sign_of_a_later_one(world: World) -> None:
    world.live(100)
    world.incarnations["learner-0"] = 2  # it was replaced, and only its heartbeats of before are there
    world.states[11] = "stopped"
    world.live(19)
    assert world.killed == {}
    world.live(3)
    assert list(world.killed) == ["learner-0"]


def test_a_node_that_falls_silent_is_told_once_and_so_is_that_it_speaks_again() -> None:
    world = World()
    world.pids |= {"rollout-0": 13, "engine-0": 14}
    world.beat_at |= {"rollout-0": 0.0, "engine-0": 0.0}
    world.nodes = {"learner-0": "a", "dealer": "a", "rollout-0": "b", "engine-0": "b"}

    def about_nodes(seconds: float, **how: Any) -> list[str]:
        return [kind for kind in world.live(seconds, **how) if kind.startswith("node")]

    about_nodes(2)
    world.quiet = {"rollout-0"}  # a process
    assert about_nodes(10) == []
    world.quiet = set()
    about_nodes(2)
    world.quiet = {"rollout-0", "engine-0"}
    assert about_nodes(6) == [] and about_nodes(10) == ["node_silent"]
    told = [data for _, kind, data in world.events if kind == "node_silent"]
    assert told == [{"node": "b", "seconds": 7.0, "actors": ("engine-0", "rollout-0"), "lone": False}]
    assert about_nodes(5, redis=False) == [] and about_nodes(3) == []  # a Redis that is away says nothing of nodes
    world.quiet = set()
    assert about_nodes(3) == ["node_speaks"]
