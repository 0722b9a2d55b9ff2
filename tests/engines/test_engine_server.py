"""The engine over HTTP: its life, its refusals, and what it promises to those who wait. The contract suite has the rest."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from engine_support import CONTEXT, VOCAB
from running_engine import DEADLINE_S, LONG, Running, start

from miles_async.engines.embedded import frontend, model
from miles_async.engines.embedded.server import main


async def test_it_answers_when_it_says_it_is_ready_and_stops_when_told(checkpoint: Path) -> None:
    async with aiohttp.ClientSession() as session:
        engine = await start(checkpoint, session, weight_version="5")
        assert (await engine.call("/health", method="GET"))[0] == 200
        assert (await engine.call("/health_generate", method="GET"))[0] == 200
        assert (await engine.call("/model_info", method="GET"))[1]["weight_version"] == "5"
        await engine.call("/pause_generation", {"mode": "retract"})
        waiting = asyncio.create_task(engine.generate())
        await engine.until(num_waiting_reqs=1)
        engine.stop.set()
        assert (await waiting)["meta_info"]["finish_reason"]["type"] == "abort"  # answered, not cut off
        async with asyncio.timeout(DEADLINE_S):
            await engine.task
        with pytest.raises(aiohttp.ClientConnectorError):
            await engine.call("/health", method="GET")


async def test_a_step_that_fails_fails_the_requests_and_the_server(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aiohttp.ClientSession() as session:
        engine = await start(checkpoint, session)

        def broken(*_: Any, **__: Any) -> torch.Tensor:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(model.Decoder, "forward", broken)
        status, answer = await engine.call("/generate", {"input_ids": [1]})
        assert (status, answer["error"]["message"]) == (500, "the engine failed: out of memory")
        with pytest.raises(RuntimeError, match="the engine failed: out of memory"):
            await engine.task


def test_a_server_that_cannot_start_says_why_in_one_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model-path", str(checkpoint), "--port", str(port)]) == 2
        assert capsys.readouterr().err == f"error: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    for flag, value in (("--model-path", "/nowhere"), ("--dtype", "int8"), ("--device", "abacus")):
        arguments = {"--model-path": str(checkpoint), "--port": "0", flag: value}
        assert main([part for pair in arguments.items() for part in pair]) == 2
        error = capsys.readouterr().err
        assert value in error and error.count("\n") == 1


async def test_without_the_key_nothing_but_health_answers(checkpoint: Path) -> None:
    async with aiohttp.ClientSession() as session:
        engine = await start(checkpoint, session, api_key="secret")
        for path, method in (("/generate", "POST"), ("/model_info", "GET"), ("/pause_generation", "POST")):
            assert (await engine.call(path, {"input_ids": [1]}, method))[0] == 401
            assert (await engine.call(path, {"input_ids": [1]}, method, Authorization="Bearer other"))[0] == 401
        assert (await engine.call("/health", method="GET"))[0] == 200
        assert (await engine.call("/generate", {"input_ids": [1]}, Authorization="Bearer secret"))[0] == 200
        engine.stop.set()
        await engine.task


BAD: list[tuple[Any, str]] = [
    ({"input_ids": [1, VOCAB, 2]}, f"token id {VOCAB} in input_ids"),
    ({"input_ids": [[1], [2, -3]]}, "token id -3 in input_ids"),
    ({"input_ids": []}, "input_ids cannot be empty"),
    ({"input_ids": [[1], []]}, "input_ids cannot be empty"),
    ({}, "Either text, input_ids"),
    ({"input_ids": "abc"}, "Expected `array`"),
    ({"input_ids": [1.5]}, "Expected `int`"),
    (b"{", "truncated"),
    ({"input_ids": [1], "sampling_params": {"nope": 1}}, "unknown field `nope`"),
    ({"input_ids": [1], "sampling_params": {"temperature": -1}}, "temperature must be"),
    ({"input_ids": [1], "sampling_params": {"top_p": 0}}, "top_p must be in (0, 1], got 0"),
    ({"input_ids": [1], "sampling_params": {"top_k": 0}}, "top_k must be"),
    ({"input_ids": [1], "sampling_params": {"max_new_tokens": -1}}, "max_new_tokens must be at least 0"),
    ({"input_ids": [1], "sampling_params": {"sampling_seed": 1 << 63}}, "sampling_seed must be in"),
    ({"input_ids": [1], "sampling_params": {"regex": "a*"}}, "regex is not supported by the embedded engine"),
    ({"input_ids": [1], "sampling_params": {"max_new_tokens": CONTEXT}}, "maximum context length"),
    ({"input_ids": [1] * CONTEXT}, "longer than the model's context length"),
    ({"input_ids": [[1], [2]], "sampling_params": [{}]}, ""),
    ({"input_ids": [[1], [2]], "sampling_params": [{}, {}, {}]}, "3 entries for 2 prompts"),
    ({"input_ids": [[1], [2]], "rid": ["a", "a"]}, "Duplicate request ID detected: a"),
    ({"input_ids": [[1], [2]], "rid": ["a"]}, "rids length mismatch"),
    ({"input_ids": [1], "top_logprobs_num": 3}, "top_logprobs_num is not supported"),
    ({"input_ids": [1], "return_logprob": True, "logprob_start_len": 2}, "logprob_start_len=2"),
]


async def test_bad_input_is_refused_with_its_reason_and_harms_nobody(engine: Running) -> None:
    for body, complaint in BAD:
        status, answer = await engine.call("/generate", body)
        if not complaint:
            assert status == 200
            continue
        assert status == 400, (body, answer)
        assert complaint in json.dumps(answer), (body, answer)
    assert len((await engine.generate(sampling_params={"max_new_tokens": 3}))["output_ids"]) == 3
    await engine.until(num_running_reqs=0, num_waiting_reqs=0)


async def test_a_group_is_one_request_with_parameters_of_its_own_for_each_response(engine: Running) -> None:
    params = [{"max_new_tokens": n, "sampling_seed": n} for n in (4, 2, 9)]
    answers = await engine.generate(input_ids=[[1, 2]] * 3, sampling_params=params, return_logprob=True)
    assert [len(answer["output_ids"]) for answer in answers] == [4, 2, 9]
    for answer, one in zip(answers, params, strict=True):
        alone = await engine.generate(input_ids=[1, 2], sampling_params=one)
        assert alone["output_ids"] == answer["output_ids"]
        logprobs = answer["meta_info"]["output_token_logprobs"]
        assert [token for _, token, _ in logprobs] == answer["output_ids"]


async def test_n_responses_with_a_seed_differ_and_are_those_of_the_following_seeds(engine: Running) -> None:
    answers = await engine.generate(sampling_params={"n": 3, "sampling_seed": 10, "max_new_tokens": 12})
    alone = [await engine.generate(sampling_params={"sampling_seed": s, "max_new_tokens": 12}) for s in (10, 11, 12)]
    assert [a["output_ids"] for a in answers] == [a["output_ids"] for a in alone]
    assert answers[0]["output_ids"] != answers[1]["output_ids"]


async def test_a_client_that_goes_away_frees_its_place(engine: Running) -> None:
    for stream in (False, True):
        asking = asyncio.create_task(
            engine.call("/generate", {"input_ids": [[1]] * 3, "sampling_params": LONG, "stream": stream})
        )
        # hold them where they are, so that only the disconnect can end them
        await engine.call("/pause_generation", {"mode": "in_place"})
        while sum([(await engine.load())[name] for name in ("num_running_reqs", "num_waiting_reqs")]) < 3:
            assert not asking.done(), asking.result()
        asking.cancel()
        await engine.until(num_running_reqs=0, num_waiting_reqs=0)
        await engine.call("/continue_generation")


async def test_a_stream_grows_to_the_whole_answer_for_each_of_a_list(engine: Running) -> None:
    sampling = {"max_new_tokens": 5, "sampling_seed": 1, "ignore_eos": True}  # the same text in every run
    body = {"input_ids": [[1], [2]], "sampling_params": sampling, "return_logprob": True, "stream": True}
    status, text = await engine.call("/generate", body)
    assert status == 200
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    for index in range(2):
        mine = [chunk for chunk in chunks if chunk["index"] == index]
        assert [len(chunk["output_ids"]) for chunk in mine] == [1, 2, 3, 4, 5]
        assert [chunk["meta_info"]["finish_reason"] is None for chunk in mine] == [True] * 4 + [False]
        last = mine[-1]
        assert all(last["output_ids"][: len(chunk["output_ids"])] == chunk["output_ids"] for chunk in mine)
        assert last["text"] == " ".join(f"w{token}" for token in last["output_ids"])


async def test_a_paused_engine_is_healthy_but_not_ready(engine: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "HEALTH_TIMEOUT_S", 0.05)
    await engine.call("/pause_generation", {"mode": "retract"})
    assert [(await engine.call(path, method="GET"))[0] for path in ("/health", "/ready", "/health_generate")] == [
        200,
        503,
        503,
    ]
    await engine.call("/continue_generation")
    assert (await engine.call("/ready", method="GET"))[0] == 200
    await engine.until(num_waiting_reqs=0)
