"""From what a policy wrote to the calls in it, in every spelling that the field has."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_async.rollout.tool_calls import python_tag, qwen

ARGUMENTS = {"code": "print('</tool_call>', '<tool_call>', '; <|python_tag|>')", "n": [1, None]}
CALL = {"name": "run", "arguments": ARGUMENTS}


@pytest.mark.parametrize(
    "written",
    [
        {"name": "run", "arguments": ARGUMENTS},
        {"name": "run", "parameters": ARGUMENTS},
        {"arguments": json.dumps(ARGUMENTS), "name": "run"},
        {"name": "run", "parameters": json.dumps(ARGUMENTS, indent=1)},
        {"name": "run", "arguments": ARGUMENTS, "parameters": None, "id": "x"},
        {"id": "x", "type": "function", "function": {"name": "run", "arguments": json.dumps(ARGUMENTS)}},
    ],
)
def test_a_call_is_what_its_json_says_whatever_stands_in_its_texts(written: dict[str, Any]) -> None:
    text = json.dumps(written)
    assert qwen(f"so <tool_call>\n{text}\n</tool_call>") == [CALL]
    assert qwen(f"<tool_call>{text}</tool_call>\n<tool_call>{text}</tool_call><|im_end|>") == [CALL, CALL]
    assert qwen(f"<tool_call>{text}") == [CALL]  # the policy ended before it closed the tag
    assert python_tag(f"so <|python_tag|>{text}<|eom_id|>") == [CALL]
    assert python_tag(f"<|python_tag|>{text}; {text}<|eom_id|>") == [CALL, CALL]


def test_several_calls_behind_one_tag_are_all_found() -> None:
    text = json.dumps(CALL)
    for several in (f"[{text}, {text}]", f"{text}\n{text}", f"{text}, {text}"):
        assert qwen(f"<tool_call>{several}</tool_call>") == [CALL, CALL] == python_tag(f"<|python_tag|>{several}")


@pytest.mark.parametrize("given", [{}, {"arguments": None}, {"parameters": ""}, {"arguments": "{}"}])
def test_a_call_without_arguments_is_one(given: dict[str, Any]) -> None:
    text = json.dumps({"name": "f", **given})
    assert (
        qwen(f"<tool_call>{text}</tool_call>")
        == [{"name": "f", "arguments": {}}]
        == python_tag(f"<|python_tag|>{text}")
    )


@pytest.mark.parametrize("given", ["[1]", '"x"', "not json", "{", "[" * 100_000])
def test_arguments_that_are_no_object_make_no_call(given: str) -> None:
    assert qwen(f"<tool_call>{json.dumps({'name': 'f', 'arguments': given})}</tool_call>") == []
    good = json.dumps(CALL)
    assert qwen(f"<tool_call>{{broken</tool_call><tool_call>{good}</tool_call>") == [CALL]


def test_half_a_surrogate_pair_in_a_call_is_text_all_the_same() -> None:
    (call,) = qwen('<tool_call>{"name": "f\\udc00", "arguments": {"\\ud83d": ["\\ud83d\\ude00", {"x": "a\\ud83d"}]}}')
    assert call == {"name": "f\ufffd", "arguments": {"\ufffd": ["\U0001f600", {"x": "a\ufffd"}]}}
    msgspec.json.encode(call)


arguments = st.dictionaries(
    st.text(max_size=5), st.integers() | st.text(max_size=8) | st.lists(st.booleans()), max_size=3
)
calls = st.lists(st.tuples(st.text(min_size=1, max_size=6), arguments), max_size=3)


@given(calls=calls, noise=st.sampled_from(["", "I think ", "<tool_call>not json</tool_call>", "{"]))
def test_what_the_template_shows_as_calls_is_found_in_order(
    calls: list[tuple[str, dict[str, Any]]], noise: str
) -> None:
    expected = [{"name": name, "arguments": values} for name, values in calls]
    tagged = [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in expected]
    assert qwen(noise + "\n".join(tagged) + "<|im_end|>") == expected
    parameters = [json.dumps({"name": name, "parameters": values}) for name, values in calls]
    assert python_tag("I think <|python_tag|>" + "; ".join(parameters) + "<|eom_id|>") == expected


@given(st.text(st.sampled_from('<tool_call>/{}":,[]name arguments|python_tag;\\'), max_size=200))
def test_whatever_a_policy_writes_is_calls_or_none(text: str) -> None:
    for parser in (qwen, python_tag):
        for call in parser(text):
            assert isinstance(call["name"], str) and isinstance(call["arguments"], dict)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": 3}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>["f"]</tool_call>',
        '{"name": "f", "parameters": {}}',
        '<|python_tag|>{"name": "f"',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
    ],
)
def test_what_is_malformed_is_no_call(text: str) -> None:
    assert qwen(text) == [] == python_tag(text)
