"""An answer that names weights which no learner has published is refused by its worker, and named."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from announcing import announce

from bus import Bus
from bus.messages import Snapshot
from miles_async.rollout.generate import AnswerError
from miles_async.rollout.published import PublishedVersions


def answer(*versions: object, rid: str = "g.0") -> dict[str, Any]:
    spans = [{"version": version, "start": i, "end": i + 1} for i, version in enumerate(versions)]
    return {"output_ids": [5] * len(spans), "meta_info": {"id": rid, "weight_versions": spans}}


async def publish(bus: Bus, version: int, incarnation: int = 1) -> None:
    await announce(bus, version, incarnation)


async def test_what_was_published_is_believed_however_lately_and_what_was_not_is_refused_by_name(bus: Bus) -> None:
    published = PublishedVersions(bus)
    for version in range(700):  # more than one read gives
        await publish(bus, version)
    await published.check([answer("3", "699"), answer("0")])
    await publish(bus, 700)
    await published.check([answer("700")])
    with pytest.raises(AnswerError, match=r"g\.7: tokens of weight version 1000000; the newest .* is 700"):
        await published.check([answer("700"), answer("700", "1000000", rid="g.7")])


async def test_a_learner_that_goes_back_takes_nothing_back_that_was_published(bus: Bus) -> None:
    published = PublishedVersions(bus)
    await publish(bus, 9)
    await publish(bus, 5, incarnation=2)
    await published.check([answer("9", "5")])
    with pytest.raises(AnswerError):
        await published.check([answer("10")])


async def test_without_a_learner_and_for_other_forms_nothing_is_refused_here(bus: Bus) -> None:
    published = PublishedVersions(bus)
    await published.check([answer("4")])
    await publish(bus, 1)
    for strange in ({}, [], None, [None], [answer("default")], [answer(None)], [{"meta_info": {"weight_versions": 7}}]):
        await published.check(strange)


async def test_answers_that_come_while_the_stream_is_read_wait_for_what_is_found(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = PublishedVersions(bus)
    await publish(bus, 0)
    await published.check([answer("0")])
    await publish(bus, 3)
    asked, go_on = asyncio.Event(), asyncio.Event()
    knows = published._ledger.knows

    async def slowly(snapshot: Snapshot) -> bool:
        asked.set()
        await go_on.wait()
        return await knows(snapshot)

    monkeypatch.setattr(published._ledger, "knows", slowly)
    first = asyncio.create_task(published.check([answer("3")]))
    await asked.wait()  # it has read the stream to its end, and does not know yet what it read
    second = asyncio.create_task(published.check([answer("3", rid="g.1")]))
    await published.newest_for([])  # who names nothing waits for nobody
    await asyncio.wait({second}, timeout=0.5)  # one that read for itself would have found nothing, and have failed
    assert not second.done()
    go_on.set()
    await asyncio.gather(first, second)
