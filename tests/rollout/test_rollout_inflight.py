"""Samples in flight: the limit follows the engines' load, a slot frees when its sample ends, what is called back goes on."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_engines import FakeEngine, fleet, respond
from generate_answers import Decoder, answer
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import TOKENS, pack, unpack
from bus.messages import Ticket
from miles_async.config.schema import Rollout
from miles_async.engines.client import EngineClient
from miles_async.rollout.generate import MAX_ABORTS, generate_group
from miles_async.rollout.inflight import PATIENCE, AdaptiveLimit, EngineLoad, read_loads
from miles_async.rollout.slots import GroupSlots, Request, Slots
from miles_async.rollout.timing import GroupTimes, Timing

LOADS = st.builds(EngineLoad, st.integers(0, 300), st.integers(0, 300), st.floats(0, 1.2))
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
    less = light.look([EngineLoad(r, w, kv) for r, w, kv, _, _ in pairs], in_flight)
    more = heavy.look([EngineLoad(r, w + dw, kv + dkv) for r, w, kv, dw, dkv in pairs], in_flight)
    assert more.limit <= less.limit
    assert more.cancel >= less.cancel


def test_an_engine_that_is_paused_for_an_update_says_nothing_about_its_load() -> None:
    policy = AdaptiveLimit(8, 400, 200)
    for _ in range(5):
        assert policy.look([EngineLoad(0, 190, 0.0)], 190).limit == 200
    for look in range(1, PATIENCE + 1):  # and one look at the queue behind it is not enough
        limit = policy.look([EngineLoad(100, 90, 0.5)], 190).limit
        assert (limit < 200) == (look == PATIENCE)


def test_a_limit_that_does_not_bind_does_not_grow_and_a_cut_takes_effect_before_the_next() -> None:
    idle, full = [EngineLoad(10, 0, 0.1)], [EngineLoad(100, 0, 0.95)]
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
    assert read_loads({"engines": [good, *broken]}) == [EngineLoad(3, 1, 0.25)]
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

    def load(self) -> EngineLoad:
        return EngineLoad(len(self.running), len(self.waiting), self.used / self.cache)


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


class Held:
    """Takes requests and answers when it is told to. Keeps the most samples that it had at once."""

    def __init__(self) -> None:
        self.requests: list[tuple[Request, asyncio.Future[list[dict[str, Any]]]]] = []
        self.most = 0

    async def send(self, request: Request) -> list[dict[str, Any]]:
        future: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self.requests.append((request, future))
        self.most = max(self.most, sum(len(one.rids) for one, _ in self.requests))
        return await future

    @property
    def rids(self) -> list[list[str]]:
        return [request.rids for request, _ in self.requests]

    async def end(self, place: int, tokens: list[int], finish: str = "stop") -> None:
        """Answer the request at ``place``: each of its prompts with ``tokens``."""
        request, future = self.requests.pop(place)
        future.set_result([answer(rid, list(tokens), finish) for rid in request.rids])
        await settled()

    async def abort(self, rids: list[str]) -> None:
        """As an engine does it: what is under way is answered with the tokens it has, here one."""
        for request, _ in [one for one in self.requests if set(one[0].rids) & set(rids)]:
            await self.end([one for one, _ in self.requests].index(request), [1], "abort")


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def prompts(name: str, count: int) -> dict[str, Any]:
    return {"rid": [f"{name}.{i}" for i in range(count)], "input_ids": [[5]] * count}


async def one_by_one(group: GroupSlots, name: str, count: int) -> None:
    async def one(index: int) -> None:
        async with group.sample() as ask:
            await ask({"rid": [f"{name}.{index}"], "input_ids": [[5]]})

    await asyncio.gather(*(one(index) for index in range(count)))


async def test_a_slot_frees_when_its_sample_ends_and_the_next_group_begins_while_a_long_one_goes_on() -> None:
    engine = Held()
    slots = Slots(6, engine.send)
    assert slots.room(4) == 2
    tasks = []
    for name in ("a", "b"):
        tasks.append(asyncio.create_task(one_by_one(slots.begin(4), name, 4)))
    assert slots.room(4) == 0  # counted before they have asked for anything
    await settled()
    assert [rid for (rid,) in engine.rids] == ["a.0", "a.1", "a.2", "a.3", "b.0", "b.1"]
    assert (slots.in_flight, slots.waiting) == (6, 2)
    for _ in range(3):
        await engine.end(1, [1])
    assert [rid for (rid,) in engine.rids] == ["a.0", "b.0", "b.1", "b.2", "b.3"]
    assert (slots.in_flight, slots.waiting, slots.room(4)) == (5, 0, 1)  # with a.0 still at work
    for _ in range(5):
        await engine.end(0, [1])
    await asyncio.gather(*tasks)
    assert (slots.in_flight, slots.waiting, slots.expected, engine.most) == (0, 0, 0, 6)


async def test_a_group_in_one_request_has_its_slots_until_the_last_sample_ends_and_a_larger_one_than_the_limit_is_alone() -> (
    None
):
    engine = Held()
    slots = Slots(5, engine.send)
    tasks = [asyncio.create_task(slots.begin(4).ask(prompts(name, size))) for name, size in (("a", 4), ("b", 8))]
    await settled()
    assert len(engine.requests) == 1 and (slots.in_flight, slots.waiting) == (4, 8)
    await engine.end(0, [1])
    assert (slots.in_flight, slots.waiting, slots.room(4)) == (8, 0, 0)
    await engine.end(0, [1])
    await asyncio.gather(*tasks)


async def test_the_youngest_are_called_back_and_go_on_with_their_tokens_before_younger_ones_begin() -> None:
    engine = Held()
    slots = Slots(4, engine.send)
    ticket = Ticket(group_id="0-7-0", prompt_tokens=pack([5, 6], TOKENS), sampling_seed=40)
    config = Rollout(n_samples_per_prompt=2)
    old = slots.begin(2)
    group = slots.begin(2)
    making = [
        asyncio.create_task(old.ask(prompts("old", 2))),
        asyncio.create_task(generate_group(ticket, config, group.ask, Decoder())),  # type: ignore[arg-type]
    ]
    await settled()
    slots.limit = 2
    for _ in range(MAX_ABORTS + 1):  # a sample that is called back again and again has not failed
        rids = slots.cancel(1)
        assert all(rid.startswith("0-7-0.") for rid in rids) and len(rids) == 2
        request, future = engine.requests.pop()
        assert request.rids == rids
        future.set_result([answer(rid, [], "abort") for rid in rids])
        await settled()
        assert (slots.in_flight, slots.waiting, slots.room(1)) == (2, 2, 0)
        slots.limit = 4
        await settled()
        assert (slots.in_flight, slots.waiting) == (4, 0)
        slots.limit = 2
    await engine.abort(slots.cancel(2))
    waiting = asyncio.create_task(slots.begin(2).ask(prompts("young", 2)))
    await settled()
    assert engine.rids == [["old.0", "old.1"]]
    await engine.end(0, [9])
    ((request, _),) = engine.requests
    assert request.body["input_ids"] == [[5, 6, 1], [5, 6, 1]]
    await engine.end(0, [2, 3])
    samples = await making[1]
    assert [unpack(sample.tokens, TOKENS).tolist() for sample in samples] == [[1, 2, 3]] * 2
    assert slots.canceled == 2 * (MAX_ABORTS + 2)
    await engine.end(0, [1])
    await waiting


@given(
    plan=st.lists(
        st.tuples(st.sampled_from(["begin", "end", "abort", "limit", "kill"]), st.integers(0, 9)), max_size=30
    )
)
async def test_whatever_begins_ends_or_is_killed_the_slots_add_up(plan: list[tuple[str, int]]) -> None:
    engine = Held()
    slots = Slots(5, engine.send)
    tasks: list[asyncio.Task[None]] = []
    for action, number in plan:
        limit, before = slots.limit, slots.in_flight
        if action == "begin" and slots.room(3):
            group = slots.begin(3)
            tasks.append(asyncio.create_task(one_by_one(group, str(len(tasks)), 3)))
            tasks[-1].add_done_callback(lambda _, group=group: group.end())
        elif action == "end" and engine.requests:
            await engine.end(number % len(engine.requests), [1])
        elif action == "abort":
            await engine.abort(slots.cancel(number))
        elif action == "limit":
            slots.limit = limit = max(1, number)
        elif action == "kill" and tasks:
            tasks[number % len(tasks)].cancel()
        await settled()
        engine.requests = [one for one in engine.requests if not one[1].cancelled()]
        assert slots.in_flight == len(engine.requests) <= max(limit, before)
        assert not slots.waiting or slots.in_flight >= slots.limit
    while engine.requests:
        await engine.end(0, [1])
    await asyncio.gather(*tasks, return_exceptions=True)
    await settled()
    assert (slots.in_flight, slots.waiting, slots.expected) == (0, 0, 0)


async def test_who_keeps_the_ask_of_a_sample_beyond_its_end_needs_no_slot() -> None:
    engine = Held()
    slots = Slots(1, engine.send)
    async with slots.begin(1).sample() as ask:
        pass
    asking = asyncio.ensure_future(ask(prompts("late", 1)))
    await settled()
    await engine.end(0, [1])
    assert len(await asking) == 1 and slots.in_flight == 0


@pytest.mark.parametrize(
    ("body", "size", "rids", "renamed"),
    [
        ({"rid": ["a", "b"], "input_ids": [[1], [2]]}, 2, ["a", "b"], ["a+", "b+"]),
        ({"rid": "ab", "input_ids": [1, 2, 3]}, 1, ["ab"], "ab+"),
        ({"text": ["x", "y", "z"]}, 3, [], None),
        ({"text": "xyz"}, 1, [], None),
    ],
)
def test_a_request_is_as_many_samples_as_it_has_prompts_and_is_sent_again_under_another_name(
    body: dict[str, Any], size: int, rids: list[str], renamed: Any
) -> None:
    request = Request(body)
    assert (request.size, request.rids) == (size, rids)
    request.rename()
    assert request.body.get("rid") == renamed


def test_the_tail_of_a_group_is_what_is_left_of_its_time_when_half_of_its_samples_have_ended() -> None:
    timing, times = Timing(), GroupTimes()
    answers = [answer("r", [1], e2e_latency=seconds) for seconds in (1.0, 2.0, 4.0, 10.0)]
    times.answered(100.0, 110.5, [*answers, answer("r", [1], "abort", e2e_latency=3.0), "junk", {}])
    timing.add(times, 4)
    short = GroupTimes()
    short.ended(0.0, 5.0)
    timing.add(short, 4)  # three of its samples failed: nothing is known of its tail
    report = timing.report()
    assert report["rollout/tail_share"] == pytest.approx(0.8)
    assert (report["rollout/sample_seconds"], report["rollout/sample_seconds_max"]) == pytest.approx((22 / 5, 10.0))
    assert timing.report() == {}


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
    assert read_loads(answers[0]) == [EngineLoad(6, 2, 0.75)]
    assert all(found == answers[0] for found in answers) and len(good.seen) == 1  # one question for all who ask
