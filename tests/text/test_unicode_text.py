"""Text that is no UTF-8 costs nobody a rollout: not a tool's, not the policy's, not an agent's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from chat_models import chat_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from miles_async.config.schema import Rollout
from miles_async.evaluation.metrics import EvalSample
from miles_async.evaluation.point import Result, _checked
from miles_async.evaluation.record import EvalRecord
from miles_async.rollout.failures import reason_of
from miles_async.rollout.multi_turn import _answer
from miles_async.rollout.sessions import chat
from miles_async.rollout.sessions.session import Session
from miles_async.rollout.tool_calls import qwen
from miles_async.text.unicode import well_formed

HALF = "\ud83d"
TEXTS = st.text(st.characters(), max_size=8)


@given(
    st.recursive(
        st.none() | st.floats(allow_nan=False) | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)
    )
)
def test_what_is_made_well_formed_can_be_sent_and_the_rest_is_as_it_was(value: Any) -> None:
    made = well_formed(value)
    msgspec.msgpack.encode(made)
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return
    assert made == value


@given(TEXTS, TEXTS)
def test_a_whole_pair_is_a_letter_and_half_a_one_a_replacement(before: str, after: str) -> None:
    before, after = well_formed(before), well_formed(after)
    assert well_formed(f"{before}{HALF}{after}") == f"{before}\ufffd{after}"
    assert well_formed(f"{before}{HALF}\ude00{after}") == f"{before}\U0001f600{after}"


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_what_a_tool_answers_is_an_answer_whatever_its_text(tmp_path: Path) -> None:
    async def half(name: str, arguments: dict[str, Any], metadata: dict[str, Any]) -> str:
        return f"a{HALF}b"

    async def fails(name: str, arguments: dict[str, Any], metadata: dict[str, Any]) -> str:
        raise LookupError(HALF)

    async def unspeakable(name: str, arguments: dict[str, Any], metadata: dict[str, Any]) -> str:
        raise Unspeakable

    call = {"name": "f", "arguments": {}}
    tokenizer = chat_tokenizer(tmp_path, "chatml")
    for tool, expected in (
        (half, "a\ufffdb"),
        (fails, "error: LookupError: \ufffd"),
        (unspeakable, "error: Unspeakable: its text cannot be made: RuntimeError"),
    ):
        answer = await _answer(tool, call, {}, 5.0)
        assert answer == expected
        tokenizer.encode(answer)


@pytest.mark.parametrize("error", [LookupError(f"a{HALF}\n"), Unspeakable()])
def test_the_cause_of_a_failure_can_be_recorded_whatever_it_says(error: Exception) -> None:
    reason, detail = reason_of(error)
    assert reason == "rollout_error" and type(error).__name__ in detail and "\n" not in detail
    msgspec.json.encode(detail)


def of_the_users_own(text: str) -> list[dict[str, Any]]:
    return [{"name": "f", "arguments": json.loads('{"x": "\\ud83d"}')}]


@pytest.mark.parametrize("parse_calls", [qwen, of_the_users_own])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_endpoint_answers_a_policy_that_writes_half_a_surrogate_pair(
    tmp_path: Path, parse_calls: Any, stream: bool
) -> None:
    tokenizer = chat_tokenizer(tmp_path, "tools")
    written = tokenizer.encode('<tool_call>{"name": "f", "arguments": {"x": "\\ud83d"}}</tool_call><|im_end|>')

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        meta = {
            "finish_reason": {"type": "stop"},
            "output_token_logprobs": [[-1.0, token, None] for token in written],
            "weight_versions": [{"version": "1", "start": 0, "end": len(written)}],
        }
        return [{"output_ids": written, "meta_info": meta}]

    session = Session("s", 1, Rollout(rollout_max_response_len=500), tokenizer, ask, parse_calls)
    tools = [{"type": "function", "function": {"name": "f"}}]
    messages: list[Any] = [{"role": "user", "content": "a"}]
    reply: Any = None
    for _ in range(2):
        body = {"messages": messages, "tools": tools, "stream": stream}
        request = chat.parse(json.dumps(body).encode())  # as Python's clients write it: "\ud83d"
        reply = await session.chat(request)
        head = {"id": "1", "created": 1, "model": "m"}
        assert chat.completion(request, reply, head) and b"".join(chat.chunks(request, reply, head))
        messages += [reply.message, {"role": "tool", "content": f"a{HALF}", "tool_call_id": "1"}]
    assert reply.calls[0]["arguments"] == {"x": "\ufffd"}
    assert len(session.conversation.branches) == 1


def test_the_record_of_an_evaluation_takes_what_a_function_of_the_users_says(tmp_path: Path) -> None:
    sample = EvalSample(
        prompt_index=0,
        sample_index=0,
        rollout_index=0,
        prompt="p",
        response=f"a{HALF}",
        label=None,
        reward=1.0,
        finish_reason="stop",
        response_len=2,
        reward_parts={HALF: 1.0},
    )
    record = EvalRecord(tmp_path / "eval")
    record.add_samples(3, {"seen": Result(_checked("seen", {f"seen/{HALF}": 1.0}), [sample])})
    (line,) = (tmp_path / "eval" / "seen-3.jsonl").read_text().splitlines()
    assert json.loads(line)["response"] == "a\ufffd" and json.loads(line)["reward_parts"] == {"\ufffd": 1.0}
