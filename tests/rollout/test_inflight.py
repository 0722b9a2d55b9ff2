"""The limit of samples in flight follows the load of the engines: within bounds, never up under more load, fair to workers."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_engines import FakeEngine, fleet, respond
from hypothesis import given
from hypothesis import strategies as st

from miles_async.engines.client import EngineClient
from miles_async.rollout.inflight import PATIENCE, AdaptiveLimit, EnginePressure, read_loads

LOADS = st.builds(EnginePressure, st.integers(0, 300), st.integers(0, 300), st.floats(0, 1.2))
LOOKS = st.lists(st.tuples(st.lists(LOADS, max_size=4), st.integers(0, 400), st.integers(0, 50)), max_size=12)


@given(bounds=st.tuples(st.integers(1, 300), st.integers(0, 300)), start=st.integers(-5, 900), looks=LOOKS)
def test_the_limit_stays_between_its_floor_and_its_ceiling(bounds: tuple[int, int], start: int, looks: Any) -> None:
    floor, ceiling = bounds[0], bounds[0] + bounds[1]
    policy = AdaptiveLimit(floor, ceiling, start)
    for engines, in_flight, waiting in looks:
        advice = policy.look(engines, in_flight, waiting)
        assert floor <= advice.limit == policy.limit <= ceiling
        assert 0 <= advice.cancel <= max(0, in_flight - advice.limit)


@given(
    history=LOOKS,
    pairs=st.lists(
        st.tuples(st.integers(1, 300), st.integers(0, 300), st.floats(0, 1.2), st.integers(0, 200), st.floats(0, 0.8)),
        max_size=4,
    ),
    in_flight=st.integers(0, 400),
)
def test_more_load_never_gives_a_higher_limit_or_fewer_cancels(history: Any, pairs: Any, in_flight: int) -> None:
    """``pairs``: engines, and how much more is waiting and cached at each of them in the other case."""
    light, heavy = AdaptiveLimit(8, 400, 200), AdaptiveLimit(8, 400, 200)
    for engines, flying, waiting in history:
        assert light.look(engines, flying, waiting) == heavy.look(engines, flying, waiting)
    less = light.look([EnginePressure(r, w, kv) for r, w, kv, _, _ in pairs], in_flight)
    more = heavy.look([EnginePressure(r, w + dw, kv + dkv) for r, w, kv, dw, dkv in pairs], in_flight)
    assert more.limit <= less.limit
    assert more.cancel >= less.cancel


def test_an_engine_that_is_paused_for_an_update_says_nothing_about_its_load() -> None:
    policy = AdaptiveLimit(8, 400, 200)
    for _ in range(5):
        assert policy.look([EnginePressure(0, 190, 0.0)], 190).limit == 200
    for look in range(1, PATIENCE + 1):  # and one look at the queue behind it is not enough
        limit = policy.look([EnginePressure(100, 90, 0.5)], 190).limit
        assert (limit < 200) == (look == PATIENCE)


def test_a_limit_that_does_not_bind_does_not_grow_and_a_cut_takes_effect_before_the_next() -> None:
    idle, full = [EnginePressure(10, 0, 0.1)], [EnginePressure(100, 0, 0.95)]
    policy = AdaptiveLimit(8, 400, 100)
    assert policy.look(idle, 99).limit == 100
    assert policy.look(idle, 99, waiting=1).limit > 100
    first = policy.look(full, 100).limit
    assert first == 75
    assert [policy.look(full, in_flight).limit for in_flight in (100, 90, 76)] == [75, 75, 75]
    assert policy.look(full, 75).limit < 75


def test_the_loads_of_a_router_are_read_and_others_are_left_out() -> None:
    good = {"engine": "e", "running": 3, "waiting": 1, "kv_usage": 0.25}
    broken: list[Any] = [
        3,
        {},
        good | {"running": "x"},
        good | {"waiting": -1},
        good | {"kv_usage": float("nan")},
        None,
    ]
    assert read_loads({"engines": [good, *broken]}) == [EnginePressure(3, 1, 0.25)]
    assert read_loads("404") == read_loads({"engines": 7}) == read_loads([]) == []


@dataclass
class SimulatedEngine:
    """So many tokens of cache and requests at once; samples of random length grow by ``SPEED`` tokens a tick, and the youngest
    goes back to the queue, its tokens lost to the cache, where there is no room."""

    cache: int
    max_running: int
    rng: random.Random
    running: list[list[int]] = field(default_factory=list)  # [tokens so far, length], oldest first
    waiting: list[list[int]] = field(default_factory=list)
    retractions = ended = 0

    SPEED = 50

    def submit(self, count: int) -> None:
        self.waiting += [[64, 64 + int(self.rng.paretovariate(1.5) * 300)] for _ in range(count)]

    @property
    def used(self) -> int:
        return sum(now for now, _ in self.running)

    def tick(self) -> None:
        while self.waiting and len(self.running) < self.max_running and self.used + self.waiting[0][0] < self.cache:
            self.running.append(self.waiting.pop(0))
        for sample in self.running:
            sample[0] += self.SPEED
        while self.used > self.cache:
            self.waiting.insert(0, self.running.pop())
            self.retractions += 1
        self.ended += sum(now >= length for now, length in self.running)
        self.running = [sample for sample in self.running if sample[0] < sample[1]]

    def load(self) -> EnginePressure:
        return EnginePressure(len(self.running), len(self.waiting), self.used / self.cache)


def simulate(
    policies: list[AdaptiveLimit], cache: int, max_running: int, ticks: int
) -> tuple[SimulatedEngine, list[float]]:
    """The engine, and the share of its cache in use after each of the later ticks."""
    engine, usage, sent = SimulatedEngine(cache, max_running, random.Random(1)), [], 0
    for tick in range(ticks):
        in_flight = sent - engine.ended
        new = max(0, sum(policy.limit for policy in policies) - in_flight)
        engine.submit(new)
        sent += new
        engine.tick()
        for policy in policies:
            policy.look([engine.load()], (sent - engine.ended) // len(policies))
        if tick >= ticks // 2:
            usage.append(engine.used / cache)
        if tick == ticks // 2:
            engine.retractions = 0
    return engine, usage


@pytest.mark.parametrize("start", [8, 1000])
def test_the_limit_finds_what_the_caches_of_an_engine_hold(start: int) -> None:
    policy = AdaptiveLimit(8, 1000, start)
    engine, usage = simulate([policy], cache=60_000, max_running=1000, ticks=400)
    assert 0.7 < sum(usage) / len(usage) < 0.95
    assert engine.retractions < 50  # with all 1000 in flight: more than 1000


def test_the_limit_finds_how_many_requests_an_engine_runs_at_once() -> None:
    policy = AdaptiveLimit(8, 1000, 1000)
    engine, _ = simulate([policy], cache=10**9, max_running=100, ticks=300)
    assert 75 <= policy.limit <= 150 and len(engine.running) > 70


def test_workers_that_share_an_engine_come_to_equal_limits() -> None:
    policies = [AdaptiveLimit(8, 500, 8), AdaptiveLimit(8, 500, 400)]
    simulate(policies, cache=60_000, max_running=1000, ticks=600)
    limits = sorted(policy.limit for policy in policies)
    assert limits[1] < 2 * limits[0]


async def test_the_router_says_how_busy_its_engines_are_and_leaves_out_those_that_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("miles_async.router.observe.loads.ASK_TIMEOUT_S", 0.3)
    rank = {"num_running_reqs": 3, "num_waiting_reqs": 1, "token_usage": 0.5}

    def engine(name: str, says: bytes | None) -> FakeEngine:
        async def handle(*args: Any) -> None:
            if says is None:
                await asyncio.sleep(9)
            else:
                await respond(args[-1], 200, says)

        return FakeEngine(name, handle)

    two = json.dumps({"loads": [rank, rank | {"token_usage": 0.75}]}).encode()
    others = [engine(f"bad{i}", says) for i, says in enumerate((b"no", b'{"loads": [{}]}', b"[]", b"[" * 5000, None))]
    good, updating = engine("good", two), engine("updating", two)
    async with fleet(good, updating, *others) as (app, url, _, session):
        app.set_updating("updating", True)
        answers = await asyncio.gather(*(EngineClient(url, session).fleet_loads() for _ in range(5)))
    assert answers[0] == {"engines": [{"engine": "good", "running": 6, "waiting": 2, "kv_usage": 0.75}]}
    assert read_loads(answers[0]) == [EnginePressure(6, 2, 0.75)]
    assert all(found == answers[0] for found in answers) and len(good.seen) == 1  # one question for all who ask
