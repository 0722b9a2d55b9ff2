"""What the compute thread finishes reaches who waits for it, and wakes the event loop for nothing less than a whole answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_support import CONTEXT, VOCAB, make_scheduler

from miles_async.engines.embedded.frontend import Frontend, Job
from miles_async.engines.embedded.sampling_params import RequestLimits
from miles_async.engines.embedded.step_output import StepOutput

DEADLINE_S = 60.0


class Watched:
    """An engine without a server that notes how many requests each delivery had."""

    def __init__(self, checkpoint: Path) -> None:
        scheduler = make_scheduler(checkpoint)
        self.frontend = Frontend(scheduler, RequestLimits(VOCAB, CONTEXT, True), scheduler.codec, frozenset())
        self.sizes: list[int] = []
        self.delivered = asyncio.Event()
        deliver = self.frontend.compute._deliver

        def noted(output: StepOutput) -> None:
            self.sizes.append(len(output.finished))
            if output.finished:
                self.delivered.set()
            deliver(output)

        self.frontend.compute._deliver = noted
        self.frontend.compute.start()

    def ask(self, *lengths: int) -> Job:
        params = [{"max_new_tokens": n, "ignore_eos": True} for n in lengths]
        return self.frontend.submit(json.dumps({"input_ids": [[1]] * len(lengths), "sampling_params": params}).encode())


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[Watched]:
    watched = Watched(checkpoint)
    yield watched
    await watched.frontend.compute.close()


async def test_the_answers_of_a_group_come_in_one_delivery_when_the_last_is_there(engine: Watched) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await engine.ask(1, 7, 3, 7, 2).done
    assert engine.sizes == [5]


async def test_what_is_finished_is_delivered_before_the_engine_rests(engine: Watched) -> None:
    job = engine.ask(1, CONTEXT - 1)
    async with asyncio.timeout(DEADLINE_S):
        while not job.computed:
            await engine.frontend.compute.call(lambda _: None)
        await engine.frontend.pause("in_place")
        await engine.delivered.wait()
        assert not job.done.done()
        engine.frontend.abort_job(job)
        await job.done
    assert [size for size in engine.sizes if size] == [1, 1]


async def test_an_answer_says_when_its_first_token_came_also_where_it_was_computed_again(engine: Watched) -> None:
    job = engine.ask(1, 40)
    (_, longer), compute = job.requests, engine.frontend.compute
    async with asyncio.timeout(DEADLINE_S):
        while not job.computed:
            await compute.call(lambda _: None)
        await engine.frontend.pause("retract")
        assert 0 < len(longer.output) < 40 and longer.received < longer.began
        began = longer.began
        await engine.frontend.resume()
        await job.done
    first, second = (answer["meta_info"] for answer in json.loads(engine.frontend.answer(job)))
    assert second["num_retractions"] == 1 and longer.began == began
    assert second["first_token_latency"] == began - longer.received < second["e2e_latency"]
    assert first["first_token_latency"] < second["e2e_latency"]
