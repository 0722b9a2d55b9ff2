"""What an engine refuses, with HTTP 400 and a reason, and that it goes on afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from contract.checkpoint import CONTEXT_LENGTH, VOCAB_SIZE
from contract.client import LONG, PROMPT, Engine
from contract.differences import differs

ONE = {"max_new_tokens": 1}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"sampling_params": ONE}, id="no prompt"),
        pytest.param({"input_ids": "abc", "sampling_params": ONE}, id="ids that are no ids"),
        pytest.param({"input_ids": [5], "sampling_params": {"nope": 1}}, id="unknown sampling parameter"),
        pytest.param({"input_ids": [5], "sampling_params": {"temperature": -1.0}}, id="negative temperature"),
        pytest.param({"input_ids": [5], "sampling_params": {"top_p": 1.5}}, id="top_p above 1"),
        pytest.param({"input_ids": [5], "sampling_params": {"max_new_tokens": -1}}, id="negative length"),
        pytest.param({"input_ids": [5] * (CONTEXT_LENGTH + 1), "sampling_params": ONE}, id="prompt too long"),
        pytest.param(
            {"input_ids": [5] * 10, "sampling_params": {"max_new_tokens": CONTEXT_LENGTH}}, id="response too long"
        ),
    ],
)
async def test_a_bad_request_is_refused_with_a_reason(engine: Engine, body: dict[str, Any]) -> None:
    answer = await engine.call("POST", "/generate", body)
    assert answer.status == 400, answer
    assert answer.body["error"] if "error" in answer.body else answer.body["message"]
    await engine.generate(sampling_params=ONE)


async def test_a_body_that_is_no_json_is_refused(engine: Engine) -> None:
    headers = {"Content-Type": "application/json"}
    async with engine.session.post(engine.url + "/generate", data="{", headers=headers) as answer:
        assert answer.status == 400


async def test_an_unknown_field_beside_the_sampling_parameters_is_ignored(engine: Engine) -> None:
    await engine.generate(sampling_params=ONE, field_of_a_later_version=1)


async def test_an_unknown_token_id_is_refused(engine: Engine) -> None:
    if differs(engine, "an unknown token id is refused"):
        return
    answer = await engine.post("/generate", input_ids=[5, VOCAB_SIZE], sampling_params=ONE)
    assert answer.status == 400
    assert str(VOCAB_SIZE) in str(answer.body)


async def test_the_id_of_a_running_request_is_refused_and_free_again_after_it(engine: Engine) -> None:
    running = engine.watch(LONG)
    await running.until_tokens(1)
    answer = await engine.post("/generate", rid=running.rid, input_ids=list(PROMPT), sampling_params=ONE)
    assert answer.status == 400
    assert running.rid in str(answer.body)
    await engine.ok("/abort_request", rid=running.rid)
    await running.finished()
    assert (await engine.generate(rid=running.rid, sampling_params=ONE))["meta_info"]["id"] == running.rid
