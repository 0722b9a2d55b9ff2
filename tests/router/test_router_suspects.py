"""Engines that misbehave are found, named and taken out within the stated time, and come back when they behave.

First the judgement alone, on observations with a clock of their own; then a router in front of synthetic engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_engines import ADMIN_KEY, served
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is beside the packages, not installed

from benchmarks.synthetic.batch import Latency
from benchmarks.synthetic_engine import LIE, Misbehaviour, SyntheticEngine
from miles_async.router.app import RouterApp
from miles_async.router.engine import RoutedEngine
from miles_async.router.observe.looks import EngineLooks
from miles_async.router.observe.suspects import FORGIVEN_S, LYING_LOOKS, Observation, Probe, Suspects, Verdict

LOOKS, HUNG_S = 5, 30.0
WELL = Probe("", 16, 0.1)


def suspects(interval_s: float = 1.0) -> Suspects:
    return Suspects(interval_s=interval_s, slow_share=0.2, slow_looks=LOOKS, hung_s=HUNG_S)


class Story:
    """A fleet looked at once a second: each engine's rate for each of four requests, and whatever else ``play`` is told."""

    def __init__(self, *rates: float) -> None:
        self.judge, self.now = suspects(), 0.0
        self.rates = dict(enumerate(rates))
        self.tokens = dict.fromkeys(self.rates, 0.0)

    def play(self, looks: int, **changes: dict[str, Any]) -> dict[str, tuple[float, str | None]]:
        """``changes``: by name (e0, e1, ...), what is seen of an engine. Gives back the verdicts and when each came."""
        found: dict[str, tuple[float, str | None]] = {}
        for _ in range(looks):
            self.now += 1.0
            seen = []
            for number, rate in self.rates.items():
                self.tokens[number] += 4 * rate
                fields: dict[str, Any] = {"inflight": 4, "running": 4, "tokens": int(self.tokens[number])}
                fields |= {"announced": "1", "reported": "1"} | changes.get(f"e{number}", {})
                seen.append(Observation(f"e{number}", **fields))
            found |= {v.engine: (self.now, v.kind) for v in self.judge.look(self.now, seen)}
        return found


def test_a_slow_engine_is_found_after_so_many_looks_and_only_that_one() -> None:
    assert Story(50, 50, 9, 45).play(LOOKS) == {}  # the first look measures nothing
    assert Story(50, 50, 9, 45).play(LOOKS + 1) == {"e2": (LOOKS + 1, "slow")}
    assert Story(50, 50, 11, 45).play(100) == {}


def test_an_engine_that_is_slow_now_and_then_stays() -> None:
    story = Story(50, 50, 5)
    for _ in range(5):
        story.rates[2] = 5
        assert story.play(LOOKS - 1) == {}
        story.rates[2] = 50
        assert story.play(1) == {}


def test_the_throughput_that_an_engine_reports_serves_where_it_counts_no_tokens() -> None:
    story = Story(0, 0, 0)
    fast, slow = ({"tokens": None, "throughput": rate} for rate in (200.0, 20.0))
    assert story.play(LOOKS + 1, e0=fast, e1=fast, e2=slow) == {"e2": (LOOKS + 1, "slow")}


def test_a_hung_engine_is_found_in_time_while_others_do_not_stand_still() -> None:
    assert Story(50, 0).play(3, e1={"quiet_s": HUNG_S - 0.1}) == {}
    assert Story(50, 0).play(3, e1={"quiet_s": HUNG_S}) == {"e1": (1.0, "hung")}
    assert Story(50, 0).play(3, e0={"inflight": 0}, e1={"quiet_s": HUNG_S}) == {"e1": (1.0, "hung")}
    assert Story(0, 0).play(3, e0={"quiet_s": HUNG_S}, e1={"quiet_s": HUNG_S}) == {}


def test_the_last_engine_stays_however_slow_or_hung() -> None:
    assert Story(50).play(3, e0={"quiet_s": 100.0}) == {}
    story = Story(50, 50)
    assert story.judge.garbage(0.0, "e1", "nonsense") is not None
    assert story.play(20, e0={"quiet_s": 100.0}) == {}
    story.rates[0] = 1
    assert story.play(20) == {}


def test_an_engine_paused_for_its_weights_is_excused_and_its_time_begins_after_that() -> None:
    story = Story(50, 50)
    updating = {"excused": True, "quiet_s": 100.0, "reported": "2", "running": 0}
    assert story.play(100, e1=updating) == {}
    assert story.play(int(HUNG_S) - 1, e1={"quiet_s": 150.0, "tokens": 7}) == {}
    assert story.play(1, e1={"quiet_s": 150.0, "tokens": 7}) == {"e1": (story.now, "hung")}


def test_another_version_than_the_announced_one_is_a_lie_from_the_second_look_on() -> None:
    assert Story(50, 50).play(LYING_LOOKS, e1={"reported": "7"}) == {"e1": (LYING_LOOKS, "lying")}
    assert Story(50).play(LYING_LOOKS, e0={"reported": "default"}) == {"e0": (LYING_LOOKS, "lying")}, (
        "also the last one"
    )
    unknown = {"announced": None, "reported": "7"}
    assert Story(50, 50).play(10, e0=unknown, e1={"reported": None}) == {}


def test_an_announcement_that_comes_a_look_late_makes_no_liar() -> None:
    story = Story(50, 50)
    for version in range(1, 20):
        assert story.play(1, e1={"announced": str(version), "reported": str(version + 1)}) == {}


def test_garbage_is_judged_at_once_and_once() -> None:
    judge = suspects()
    assert judge.garbage(1.0, "e0", "<html>") == Verdict("e0", "garbage", "<html>")
    assert judge.garbage(1.1, "e0", "<html>") is None


@pytest.mark.parametrize("kind", ["slow", "hung", "lying", "garbage"])
def test_what_is_out_comes_back_when_its_probe_is_answered_as_it_should_be(kind: str) -> None:
    story = Story(50, 50, 1 if kind == "slow" else 50)
    bad: dict[str, Any] = {"hung": {"quiet_s": 40.0}, "lying": {"reported": "7"}}.get(kind, {})
    if kind == "garbage":
        story.judge.garbage(0.0, "e2", "<html>")
    else:
        assert story.play(LOOKS + 1, e2=bad)["e2"][1] == kind
    out: dict[str, Any] = {"inflight": 0, "running": None, "tokens": None}
    assert story.play(5, e2=out) == {}
    assert story.play(5, e2=out | {"probe": Probe("no answer")}) == {}
    assert story.play(5, e2=out | {"probe": WELL, "reported": "7"}) == {}
    assert story.play(5, e2=out | {"probe": WELL, "reported": None}) == {}
    slowly = story.play(1, e2=out | {"probe": Probe("", 16, 1.0)})
    assert slowly == ({} if kind == "slow" else {"e2": (story.now, None)})
    if kind == "slow":
        assert story.play(1, e2=out | {"probe": WELL}) == {"e2": (story.now, None)}


def test_each_time_an_engine_goes_out_it_stays_out_twice_as_long_and_long_good_conduct_is_rewarded() -> None:
    judge, now, holds = suspects(), 0.0, []
    for _ in range(8):
        assert judge.garbage(now, "e0", "nonsense")
        went = now
        while judge.is_out("e0"):
            now += 1.0
            judge.look(now, [Observation("e0", probe=WELL)])
        holds.append(now - went)
    assert holds == [1, 2, 4, 8, 16, 32, 64, 64]
    now += FORGIVEN_S + 1
    judge.garbage(now, "e0", "nonsense")
    judge.look(now + 1.0, [Observation("e0", probe=WELL)])
    assert not judge.is_out("e0")


_optional = st.none() | st.integers(0, 50)
_observations = st.builds(
    dict,
    excused=st.booleans(),
    inflight=st.integers(0, 3),
    quiet_s=st.sampled_from([0.0, 31.0]),
    running=_optional,
    tokens=_optional,
    announced=st.sampled_from([None, "1"]),
    reported=st.sampled_from([None, "1", "1", "2"]),
    probe=st.sampled_from([None, Probe("no"), WELL]),
)


@given(st.lists(st.lists(_observations, min_size=3, max_size=3), max_size=20))
def test_whatever_is_seen_verdicts_alternate_and_somebody_honest_stays(looks: list[list[dict[str, Any]]]) -> None:
    judge, out = suspects(), dict[str, str | None]()
    for number, fleet in enumerate(looks):
        for verdict in judge.look(float(number), [Observation(f"e{i}", **fields) for i, fields in enumerate(fleet)]):
            assert (verdict.kind is None) == (out.get(verdict.engine) is not None)
            out[verdict.engine] = verdict.kind
        assert all(judge.is_out(name) == (kind is not None) for name, kind in out.items())
        kinds = [kind for kind in out.values() if kind is not None]
        assert len(kinds) < 3 or "lying" in kinds


# ---- a router and engines ---------------------------------------------------------------------------------------------

INTERVAL_S, SLOW_LOOKS, REAL_HUNG_S = 0.1, 3, 3.0
DEADLINE_S = 15.0
STATED_S: dict[Misbehaviour, float] = {
    "slow": (SLOW_LOOKS + 2) * INTERVAL_S,
    "stuck": REAL_HUNG_S + INTERVAL_S,
    "lying": (LYING_LOOKS + 1) * INTERVAL_S,
    "no_http": INTERVAL_S,
    "no_json": INTERVAL_S,
}
KINDS = {"slow": "slow", "stuck": "hung", "lying": "lying", "no_http": "garbage", "no_json": "garbage"}


Ask = Callable[[], Coroutine[Any, Any, Any]]


class Found:
    """The verdicts as they come."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self._news = asyncio.Event()

    def __call__(self, _: RoutedEngine, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self._news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.verdicts) < count:
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def fleet(
    count: int,
) -> AsyncIterator[tuple[RouterApp, list[SyntheticEngine], Found, Ask]]:
    """(router with its looks, engines, verdicts, a call that asks for an answer)."""
    app, found, stop = RouterApp(wait_s=5.0, admin_key=ADMIN_KEY), Found(), asyncio.Event()
    judge = Suspects(interval_s=INTERVAL_S, slow_share=0.2, slow_looks=SLOW_LOOKS, hung_s=REAL_HUNG_S)
    engines = [SyntheticEngine(f"e{i}", latency=Latency(0.002, 0.0, 0.0)) for i in range(count)]
    looks = asyncio.create_task(EngineLooks(app, app.loads, judge, found).run(stop))
    try:
        for engine in engines:
            await engine.start()
            app.add(engine.name, engine.url, version=0)
        async with served(app) as url, aiohttp.ClientSession() as session:

            async def ask() -> Any:
                body = {"input_ids": [5], "sampling_params": {"max_new_tokens": 100, "ignore_eos": True}}
                async with session.post(url + "/generate", json=body) as answer:
                    return answer.status, await answer.json()

            yield app, engines, found, ask
    finally:
        stop.set()
        await looks
        for engine in engines:
            engine.die()


async def keep_asking(ask: Ask, answers: list[Any]) -> None:
    while True:
        answers.append(await ask())


@pytest.mark.parametrize("how", STATED_S)
async def test_a_misbehaving_engine_is_named_and_taken_out_in_time_and_comes_back(how: Misbehaviour) -> None:
    async with fleet(4) as (app, engines, found, ask):
        answers: list[Any] = []
        clients = [asyncio.create_task(keep_asking(ask, answers)) for _ in range(12)]
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(3 * INTERVAL_S)
            assert found.verdicts == []
            began = loop.time()
            await engines[1].misbehave(how)
            await found.until(1)
            [verdict] = found.verdicts
            assert (verdict.engine, verdict.kind) == ("e1", KINDS[how])
            assert loop.time() - began < 3 * STATED_S[how] + 1.0  # slow cores, shared with others
            assert app.engines["e1"].state == "suspected" and KINDS[how] in app.engines["e1"].trouble
            assert verdict.why in app.engines["e1"].trouble
            before = len(engines[1].answered)
            app.add("e1", engines[1].url, version=0)  # news of it: it stays out
            await asyncio.sleep(3 * INTERVAL_S)
            assert app.engines["e1"].state == "suspected"
            await engines[1].misbehave(None)
            await found.until(2)
            assert found.verdicts[1].engine == "e1" and found.verdicts[1].kind is None
            assert app.engines["e1"].state == "up"
            while len(engines[1].answered) < before + 20:  # it is given work again
                assert all(client.done() is False for client in clients)
                await asyncio.sleep(INTERVAL_S)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        assert len(found.verdicts) == 2
        assert {status for status, _ in answers} == {200}
        told = {span["version"] for _, body in answers for span in body["meta_info"]["weight_versions"]}
        assert told <= ({"0", LIE} if how == "lying" else {"0"})


async def test_garbage_is_not_passed_on_while_another_engine_answers_and_is_an_error_where_none_does() -> None:
    async with fleet(1) as (app, engines, _, ask):
        await engines[0].misbehave("no_json")
        app.wait_s = 0.2
        status, body = await ask()
        assert status == 503 and "garbage" in body["error"]["message"]


async def test_a_pause_of_all_engines_through_the_router_makes_nobody_hung() -> None:
    async with fleet(2) as (app, _, found, ask):
        tasks = [asyncio.create_task(ask()) for _ in range(3)]
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {ADMIN_KEY}"}) as session,
            served(app) as router,
        ):
            await session.post(router + "/pause_generation", json={"mode": "in_place"})
            assert app.paused
            await asyncio.sleep(REAL_HUNG_S + 5 * INTERVAL_S)
            await session.post(router + "/continue_generation", json={})
        assert not app.paused and found.verdicts == []
        assert {status for status, _ in await asyncio.gather(*tasks)} == {200}


async def test_what_an_engine_is_taken_out_with_is_not_sent_to_it_again() -> None:
    """Also over a connection that had been used before, which looks as if the engine had closed it while it lay idle."""
    async with fleet(2) as (app, engines, _, ask):
        await asyncio.gather(*(ask() for _ in range(4)))
        await engines[1].misbehave("stuck")
        tasks = [asyncio.create_task(ask()) for _ in range(4)]
        for _ in range(1000):
            if engines[1].batch.rows.count + len(engines[1].batch.waiting) == 2:
                break
            await asyncio.sleep(0.01)
        app.suspect("e1", "so says the test")
        async with asyncio.timeout(DEADLINE_S):
            assert {status for status, _ in await asyncio.gather(*tasks)} == {200}
        assert engines[1].batch.idle
