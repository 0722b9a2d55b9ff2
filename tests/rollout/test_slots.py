"""Slots of samples in flight: one frees when its sample ends, and what is called back goes on with the tokens that it has."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from generate_answers import Decoder, answer
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import TOKENS, pack, unpack
from bus.messages import EngineServes, Ticket
from miles_async.config.schema import Rollout
from miles_async.rollout.begun import VersionsHeard
from miles_async.rollout.generate import CANCELED, MAX_ABORTS, generate_group
from miles_async.rollout.slots import GroupSlots, RolloutRequest, Slots


class Held:
    """Takes requests and answers when it is told to. Keeps the most samples that it had at once."""

    def __init__(self) -> None:
        self.requests: list[tuple[RolloutRequest, asyncio.Future[list[dict[str, Any]]]]] = []
        self.most = 0

    async def send(self, request: RolloutRequest) -> list[dict[str, Any]]:
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
    request = RolloutRequest(body)
    assert (request.size, request.rids) == (size, rids)
    request.rename()
    assert request.body.get("rid") == renamed


async def test_what_may_be_too_old_is_called_back_and_the_rest_is_left_alone() -> None:
    engine, versions, bound = Held(), VersionsHeard(), 4
    slots = Slots(9, engine.send, heard=versions, outdated=lambda oldest: oldest < bound)

    def serves(version: int) -> None:
        versions.hear(EngineServes(engine="e", url="http://127.0.0.1:1", incarnation=1, version=version), 0.0)

    groups = [slots.begin(2) for _ in range(3)]
    unknown = asyncio.create_task(groups[0].ask(prompts("unknown", 2)))  # no engine was heard of
    await settled()
    serves(3)
    old = asyncio.create_task(groups[1].ask(prompts("old", 2)))
    await settled()
    serves(4)
    young = asyncio.create_task(groups[2].ask(prompts("young", 2)))
    await settled()
    assert slots.cancel_outdated() == ["old.0", "old.1"] and slots.canceled == 2
    await engine.end(1, [1], "abort")
    (answered, _) = await old
    assert answered["meta_info"]["finish_reason"]["message"] == CANCELED
    bound = 5
    assert slots.cancel_outdated() == ["young.0", "young.1"]
    for _ in range(2):
        await engine.end(0, [1])
    await asyncio.gather(unknown, young)
    assert not groups[2].is_outdated and groups[2].outdated(4) and groups[2].is_outdated
    assert slots.in_flight == slots.waiting == 0
