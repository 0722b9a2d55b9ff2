"""Health, information, abort, pause and continue, flush."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from contract.checkpoint import CONTEXT_LENGTH, greedy_tokens, log_probs
from contract.client import LONG, PROMPT, STILL_S, Engine, sampled
from contract.differences import differs
from miles_async.engines.sglang.check import REQUIRED_ENDPOINTS

TOLERANCE = 1e-4


async def test_an_idle_engine_is_healthy_and_ready(engine: Engine) -> None:
    for path in ("/health", "/health_generate", "/ready"):
        assert (await engine.call("GET", path)).status == 200, path


async def test_model_info_names_the_model_and_its_version(engine: Engine) -> None:
    for path in ("/model_info", "/get_model_info"):
        info = (await engine.call("GET", path)).body
        assert info["model_path"] == str(engine.model)
        assert info["weight_version"] == Engine.VERSION
        assert info["is_generation"] is True


async def test_server_info_says_how_many_ranks_an_engine_has(engine: Engine) -> None:
    for path in ("/server_info", "/get_server_info"):
        info = (await engine.call("GET", path)).body
        assert info["tp_size"] == 1
        assert info["dp_size"] == 1
        assert info["version"]


async def test_loads_count_what_runs(engine: Engine) -> None:
    watched = engine.watch(LONG)
    await watched.until_tokens(50)
    loads = (await engine.call("GET", "/v1/loads")).body["loads"]
    assert sum(load["num_running_reqs"] for load in loads) == 1
    assert sum(load["num_waiting_reqs"] for load in loads) == 0
    assert all(0 < load["token_usage"] <= 1 for load in loads)


async def test_the_list_of_models_says_how_long_a_context_may_be(engine: Engine) -> None:
    (card,) = (await engine.call("GET", "/v1/models")).body["data"]
    assert card["max_model_len"] == CONTEXT_LENGTH


async def test_no_endpoint_that_a_run_needs_is_missing_and_none_takes_delete(engine: Engine) -> None:
    for path in REQUIRED_ENDPOINTS:
        assert (await engine.call("DELETE", path)).status == 405, path
    assert (await engine.call("DELETE", "/absent")).status == 404


async def test_a_paused_engine_is_not_ready_and_is_not_asked_for_its_health(engine: Engine) -> None:
    await engine.ok("/pause_generation", mode="retract")
    assert (await engine.call("GET", "/ready")).status == 503
    assert (await engine.call("GET", "/server_info")).status == 200  # its scheduler takes messages
    health = await engine.call("GET", "/health")  # SGLang's answer takes 20 s
    assert health.status == (200 if differs(engine, "a paused engine is not healthy") else 503)
    await engine.ok("/continue_generation")
    assert (await engine.call("GET", "/health")).status == 200
    assert (await engine.call("GET", "/ready")).status == 200


async def test_flushing_an_idle_engine_succeeds_and_a_busy_one_refuses(engine: Engine) -> None:
    await engine.ok("/flush_cache")
    watched = engine.watch(LONG)
    await watched.until_tokens(1)
    assert (await engine.post("/flush_cache")).status == 400


async def test_an_aborted_request_answers_with_what_it_has(engine: Engine) -> None:
    kept = asyncio.create_task(engine.generate(sampling_params={"max_new_tokens": 60, "ignore_eos": True}))
    streamed = engine.watch(LONG)
    single = asyncio.create_task(
        engine.generate(rid="single", sampling_params={"max_new_tokens": LONG, "ignore_eos": True}, return_logprob=True)
    )
    await streamed.until_tokens(20)
    await engine.ok("/abort_request", rid=streamed.rid)
    await engine.ok("/abort_request", rid="single")
    for answer in (await streamed.finished(), await single):
        reason = answer["meta_info"]["finish_reason"]
        assert reason["type"] == "abort"
        assert 0 < len(answer["output_ids"]) < LONG
        assert sampled(answer) == pytest.approx(log_probs(engine.model, PROMPT, answer["output_ids"]), abs=TOLERANCE)
        assert answer["meta_info"]["weight_versions"][-1]["end"] == len(answer["output_ids"])
    assert streamed.done_line
    assert len((await kept)["output_ids"]) == 60


async def test_abort_all_ends_every_request(engine: Engine) -> None:
    running = [engine.watch(LONG) for _ in range(4)]
    await asyncio.gather(*(watched.until_tokens(1) for watched in running))
    await engine.ok("/abort_request", abort_all=True)
    for watched in running:
        assert (await watched.finished())["meta_info"]["finish_reason"]["type"] == "abort"


async def test_aborting_nobody_is_no_error_and_a_prefix_is_nobody(engine: Engine) -> None:
    watched = engine.watch(80)
    await watched.until_tokens(1)
    await engine.ok("/abort_request", rid=watched.rid[:-1])
    await engine.ok("/abort_request", rid="unknown")
    await engine.ok("/abort_request")
    assert (await watched.finished())["meta_info"]["finish_reason"]["type"] == "length"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_aborts_its_request(engine: Engine, stream: bool) -> None:
    """Requests decode in step, so what others generate meanwhile is a clock that cannot run ahead of the lost one."""
    step = 150
    if stream:
        watched = engine.watch(LONG)
        await watched.until_tokens(1)
        await watched.disconnect()
    else:
        body = {"input_ids": list(PROMPT), "sampling_params": {"max_new_tokens": LONG, "ignore_eos": True}}
        with pytest.raises(TimeoutError):
            await engine.session.post(engine.url + "/generate", json=body, timeout=aiohttp.ClientTimeout(total=0.1))
    for _ in range(LONG // step - 2):
        await engine.generate(sampling_params={"max_new_tokens": step, "ignore_eos": True})
        if (await engine.post("/flush_cache")).status == 200:  # refused while anything runs
            return
    pytest.fail("the request goes on without its client")


async def _blocked(engine: Engine) -> asyncio.Task[Any]:
    """A new request to a paused engine, which must not be answered."""
    task = asyncio.create_task(engine.generate(sampling_params={"temperature": 0.0, "max_new_tokens": 3}))
    done, _ = await asyncio.wait({task}, timeout=STILL_S)
    assert not done, task.result()
    return task


@pytest.mark.parametrize("mode", ["retract", "in_place"])
async def test_a_pause_holds_everything_and_continue_lets_it_go_on(engine: Engine, mode: str) -> None:
    watched = engine.watch(LONG)
    await watched.until_tokens(8)
    await engine.ok("/pause_generation", mode=mode)
    held = await watched.until_still()
    assert held < LONG
    waiting = await _blocked(engine)
    assert (await engine.call("GET", "/ready")).status == 503
    assert await engine.weight_version() == Engine.VERSION
    await engine.ok("/continue_generation")
    assert (await waiting)["output_ids"] == greedy_tokens(engine.model, PROMPT, 3)
    await watched.until_tokens(held + 20)
    await engine.ok("/abort_request", rid=watched.rid)
    answer = await watched.finished()
    tokens, meta = answer["output_ids"], answer["meta_info"]
    assert sampled(answer) == pytest.approx(log_probs(engine.model, PROMPT, tokens), abs=TOLERANCE)
    assert meta["num_retractions"] == (1 if mode == "retract" else 0)
    assert meta["weight_versions"] == [{"version": Engine.VERSION, "start": 0, "end": len(tokens)}]


async def test_requests_without_an_end_token_run_to_their_length_over_a_pause(engine: Engine) -> None:
    watched = engine.watch(300)
    await watched.until_tokens(1)
    await engine.ok("/pause_generation", mode="retract")
    await engine.ok("/continue_generation")
    answer = await watched.finished()
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 300}
    assert len(answer["output_ids"]) == 300


async def test_a_pause_that_aborts_ends_what_runs_and_holds_what_comes(engine: Engine) -> None:
    watched = engine.watch(LONG)
    await watched.until_tokens(8)
    await engine.ok("/pause_generation", mode="abort")
    answer = await watched.finished()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert len(answer["output_ids"]) >= 8
    waiting = await _blocked(engine)
    await engine.ok("/continue_generation")
    assert len((await waiting)["output_ids"]) == 3


async def test_abort_is_the_default_mode_of_a_pause(engine: Engine) -> None:
    watched = engine.watch(LONG)
    await watched.until_tokens(1)
    await engine.ok("/pause_generation")
    assert (await watched.finished())["meta_info"]["finish_reason"]["type"] == "abort"


async def test_an_unknown_mode_of_pause_is_refused(engine: Engine) -> None:
    assert (await engine.post("/pause_generation", mode="nope")).status in (400, 422)


async def test_a_retracted_request_leaves_nothing_to_flush_and_one_held_in_place_does(engine: Engine) -> None:
    for mode, status in (("retract", 200), ("in_place", 400)):
        watched = engine.watch(LONG)
        await watched.until_tokens(8)
        await engine.ok("/pause_generation", mode=mode)
        assert (await engine.post("/flush_cache")).status == status, mode
        await engine.ok("/abort_request", abort_all=True)
        await engine.ok("/continue_generation")
        assert (await watched.finished())["meta_info"]["finish_reason"]["type"] == "abort"
