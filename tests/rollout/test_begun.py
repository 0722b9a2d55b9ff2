"""Where learner and engines were when a group was asked for and when its first token was sampled, as its worker heard of it."""

from __future__ import annotations

from typing import Any

from generate_answers import answer

from bus.messages import Begun, EngineDown, EngineServes, Snapshot
from miles_async.rollout.begun import KEPT, GroupBegun, VersionsHeard
from miles_async.rollout.slots import RolloutRequest, Slots


def announced(version: int) -> Snapshot:
    return Snapshot(version=version, incarnation=1, path=f"v{version}")


def serves(engine: str, version: int) -> EngineServes:
    return EngineServes(engine=engine, url="http://127.0.0.1:1", incarnation=1, version=version)


def heard(*news: tuple[float, Snapshot | EngineServes | EngineDown]) -> VersionsHeard:
    found = VersionsHeard()
    for now, message in news:
        found.hear(message, now)
    return found


def test_the_oldest_version_that_an_engine_serves_counts_and_one_that_is_down_serves_none() -> None:
    found = heard((0, serves("engine-0", 3)), (0, serves("engine-1", 2)), (1, serves("engine-0", 4)))
    assert (found.engines, found.learner) == (2, -1)
    found.hear(EngineDown(engine="engine-1", incarnation=1, reason="gone"), 2)
    assert found.engines == 4


def test_the_learner_was_where_its_last_news_had_it_and_before_the_first_it_is_not_known() -> None:
    found = heard((1.0, announced(0)), (2.0, announced(1)), (3.0, announced(4)))
    assert [found.learner_at(when) for when in (0.5, 1.0, 2.5, 9.0)] == [-1, 0, 1, 4]
    for version in range(5, 2 * KEPT):
        found.hear(announced(version), float(version))
    assert found.learner_at(2.0 * KEPT) == 2 * KEPT - 1 and found.learner_at(5.0) == -1


def test_the_first_request_and_the_earliest_token_count() -> None:
    versions = heard((0, announced(4)), (1, serves("engine-0", 3)))
    group = GroupBegun(versions)
    group.asks()
    versions.hear(announced(5), 10)
    group.asks()
    assert group.first_token is None
    group.answered(2, 20, [answer("a", [1], version=3, first_token_latency=9.5)])  # at 11.5
    assert group.first_token == 11.5
    group.answered(3, 20, [answer("b", [1, 2], version=3, first_token_latency=4.0), answer("c", [], version=5)])  # at 7
    assert group.found == Begun(learner=4, engines=3, first_token=4, sampled_by=3) and group.first_token == 7


def test_what_a_request_waited_for_an_engine_is_no_time_of_the_engines() -> None:
    """The engine had it for as long as the longest of its answers took."""
    group = GroupBegun(heard((0, announced(1))))
    several = [("a", 1.0, 4.0), ("b", 0.5, 3.0)]
    answers = [answer(rid, [1], first_token_latency=first, e2e_latency=whole) for rid, first, whole in several]
    group.answered(10, 20, answers)  # it had them at 16
    assert group.first_token == 16.5
    group = GroupBegun(heard((0, announced(1))))
    group.answered(10, 20, [answer("a", [1], first_token_latency=1.0, e2e_latency=99.0)])  # it says more than there was
    assert group.first_token == 11


def test_a_first_token_was_there_before_its_answer_whatever_an_engine_says() -> None:
    """One that counts in other units, say. What a group cannot be sent with would cost it its attempts."""
    for said in (3e6, 1e300):
        group = GroupBegun(heard((0, announced(1))))
        group.answered(10, 20, [answer("a", [1], first_token_latency=said, e2e_latency=-said)])
        assert group.first_token == 20


def test_when_the_first_token_was_is_not_known_if_one_engine_does_not_say() -> None:
    group = GroupBegun(heard((0, announced(1)), (1, serves("engine-0", 4))))
    group.answered(2, 20, [answer("a", [1], first_token_latency=1.0), answer("b", [1])])
    assert group.first_token is None and group.found.first_token == 1


def test_of_an_engine_that_does_not_say_when_it_is_not_before_the_version_was_served() -> None:
    versions = heard((0, announced(1)), (1, serves("engine-0", 1)), (5, announced(2)), (6, serves("engine-0", 2)))
    first, second = GroupBegun(versions), GroupBegun(versions)
    first.answered(3, 9, [answer("a", [1], version=1)])
    second.answered(3, 9, [answer("b", [1], version=2)])  # it was sent at 3, and sampled when that was served
    assert (first.found.first_token, first.found.sampled_by) == (1, 1)
    assert (second.found.first_token, second.found.sampled_by) == (2, 2)


def test_what_has_another_form_than_an_answer_says_nothing() -> None:
    group = GroupBegun(heard((0, announced(1))))
    no_token: dict[str, Any] = {"output_ids": [], "meta_info": {"weight_versions": []}}
    group.answered(1, 2, ["junk", {}, no_token, answer("a", [1], first_token_latency="soon")])
    group.answered(1, 2, None)
    assert group.found == Begun() and group.first_token is None


async def test_a_group_that_waits_for_a_slot_is_submitted_when_it_has_one() -> None:
    versions, clock = heard((0, announced(1)), (0, serves("engine-0", 0))), 5.0

    async def send(request: RolloutRequest) -> list[dict[str, Any]]:
        nonlocal clock
        clock = 6.0
        return [answer(rid, [1], version=0, first_token_latency=1.0) for rid in request.rids]

    slots = Slots(1, send, lambda: clock, versions, wall=lambda: 1000.0)
    group = slots.begin(1, "g")
    assert group.begun == Begun()
    async with group.sample() as ask:
        versions.hear(announced(2), 5.5)
        await ask({"rid": ["g.0"], "input_ids": [[5]]})
    clock = 7.0
    group.end()
    assert group.begun == Begun(learner=2, engines=0, first_token=2, sampled_by=0, first_token_at=999.0)
