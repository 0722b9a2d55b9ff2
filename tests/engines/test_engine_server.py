"""The engine over HTTP: its life, its refusals, and what it promises to those who wait. The contract suite has the rest."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from engine_support import CONTEXT, VOCAB, make_checkpoint, make_scheduler
from safetensors.torch import load_file, save_file

from miles_async.engines.checksum import checksums, overall_checksum
from miles_async.engines.embedded import frontend, model
from miles_async.engines.embedded.groups import TransferError, flattened_size, unflatten
from miles_async.engines.embedded.server import main, serve

DEADLINE_S = 30.0


class Running:
    """A server in this process, and a client for it."""

    def __init__(self, url: str, session: aiohttp.ClientSession, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.url, self.session, self.stop, self.task = url, session, stop, task

    async def call(self, path: str, body: Any = None, method: str = "POST", **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        async with self.session.request(method, self.url + path, data=data, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text[:1] in ("{", "[") else text

    async def generate(self, **body: Any) -> Any:
        status, answer = await self.call("/generate", {"input_ids": [1, 2, 3], **body})
        assert status == 200, answer
        return answer

    async def load(self) -> dict[str, int]:
        return (await self.call("/v1/loads", method="GET"))[1]["loads"][0]

    async def until(self, **wanted: int) -> None:
        """Returns when the engine's load is as wanted."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                load = await self.load()
                if all(load[name] == value for name, value in wanted.items()):
                    return


async def start(directory: Path, session: aiohttp.ClientSession, **options: Any) -> Running:
    stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
    options = {"weight_roots": [Path("/")]} | options  # the tests' own directories are anywhere
    task = asyncio.create_task(serve(str(directory), device="cpu", on_ready=url.set_result, stop=stop, **options))
    await asyncio.wait({task, url}, return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_S)
    if task.done():
        task.result()
    return Running(url.result(), session, stop, task)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("a"), words=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("b"), seed=1)


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[Running]:
    async with aiohttp.ClientSession() as session:
        running = await start(checkpoint, session, weight_version="0")
        yield running
        running.stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await running.task


LONG = {"max_new_tokens": CONTEXT - 10}


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

        monkeypatch.setattr(model.DenseModel, "decode", broken)
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


async def test_an_update_without_a_pause_holds_back_those_that_come_later(engine: Running, other: Path) -> None:
    """Those under way finish under the old weights, those behind the update start under the new ones."""
    await engine.call("/pause_generation", {"mode": "in_place"})
    before = asyncio.create_task(engine.generate(sampling_params=LONG))
    await engine.until(num_waiting_reqs=1)
    await engine.call("/continue_generation")
    body = {"model_path": str(other), "weight_version": "1"}
    update = asyncio.create_task(engine.call("/update_weights_from_disk", body))
    behind: list[asyncio.Task[Any]] = []
    while not update.done():
        behind.append(asyncio.create_task(engine.generate(sampling_params={"max_new_tokens": 2})))
        await asyncio.wait({behind[-1], update}, return_when=asyncio.FIRST_COMPLETED)
    assert (await update)[0] == 200
    assert len((await before)["output_ids"]) == LONG["max_new_tokens"]
    for answer in (await before, *[await task for task in behind]):
        (span,) = answer["meta_info"]["weight_versions"]
        assert span["version"] == answer["meta_info"]["weight_version"]
    assert (await before)["meta_info"]["weight_version"] == "0"
    assert (await engine.generate())["meta_info"]["weight_version"] == "1"


async def test_a_refused_flush_is_a_failed_update_whose_tokens_still_tell_the_truth(
    engine: Running, other: Path
) -> None:
    """As SGLang: paused in place, the weights change, the answer is 400, /model_info keeps the old version."""
    running = asyncio.create_task(engine.generate(sampling_params=LONG))
    await engine.until(num_running_reqs=1)
    await engine.call("/pause_generation", {"mode": "in_place"})
    status, answer = await engine.call("/update_weights_from_disk", {"model_path": str(other), "weight_version": "1"})
    assert (status, answer["success"]) == (400, False)
    assert "cache was not flushed" in answer["message"]
    assert (await engine.call("/model_info", method="GET"))[1]["weight_version"] == "0"
    await engine.call("/continue_generation")
    meta = (await running)["meta_info"]
    assert [span["version"] for span in meta["weight_versions"]] == ["0", "1"]


async def test_weights_that_are_no_numbers_fail_their_requests_and_not_the_engine(
    engine: Running, checkpoint: Path, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], torch.nan)
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    save_file(tensors, tmp_path / "model.safetensors")
    await engine.call("/update_weights_from_disk", {"model_path": str(tmp_path), "weight_version": "1"})
    status, answer = await engine.call("/generate", {"input_ids": [[1], [2]]})
    assert (status, answer) == (500, {"error": {"message": "weights 1 give no finite probabilities"}})
    await engine.call("/update_weights_from_disk", {"model_path": str(checkpoint), "weight_version": "2"})
    assert (await engine.generate())["meta_info"]["weight_version"] == "2"


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


async def test_checksums_are_those_of_the_checkpoint_file(engine: Running, checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    expected = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest()[:16] for name, t in tensors.items()}
    answer = (await engine.call("/weights_checker", {"action": "checksum"}))[1]
    assert answer["ranks"][0]["checksums"] == expected == checksums(tensors)
    assert answer["per_engine_checksum"] == overall_checksum(expected)


def test_a_bucket_comes_apart_as_it_was_put_together() -> None:
    tensors = [("a", torch.randn(3, 2)), ("b", torch.randn(5).bfloat16()), ("c", torch.arange(6, dtype=torch.int8))]
    specs = [(name, tensor.dtype, list(tensor.shape)) for name, tensor in tensors]
    flat = torch.cat([tensor.flatten().view(torch.uint8) for _, tensor in tensors])
    assert flattened_size(specs) == len(flat)
    assert all(torch.equal(got, sent) for (_, got), (_, sent) in zip(unflatten(flat, specs), tensors, strict=True))
    with pytest.raises(TransferError, match="a starts at byte 6, not a multiple of 4"):
        flattened_size([specs[2], specs[0]])


def test_memory_is_given_back_when_the_cache_is_flushed(checkpoint: Path) -> None:
    scheduler = make_scheduler(checkpoint)
    scheduler.cache.reserve(8, 100, 0)
    assert scheduler.flush()
    assert scheduler.cache.keys.numel() == 0
