"""Messages have one form, from files, data sources and agents alike; what a template would not show is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from chat_models import chat_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from miles_async.config.schema import Data, Model, Reward, Rollout, RunConfig
from miles_async.data import DataError, Prompt, load_prompts
from miles_async.rollout.sessions import chat
from miles_async.rollout.sessions.errors import ApiError
from miles_async.text.messages import ROLES, MessageError, check_rendered, normalized
from miles_async.text.tokenizer import Tokenizer

ARGUMENTS = {"city": "Łódź", "days": [1, 2]}
CALL = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How is it?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
]
# the same, as it is written in the field
SPELLINGS: dict[str, list[dict[str, Any]]] = {
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "How is it?"}]},
        {"role": "assistant", "content": [], "tool_calls": [CALL]},
        {"role": "tool", "content": [{"text": "rain"}]},
    ],
    "texts": [TALK[0], {"role": "user", "content": ["How ", "is it?"]}, *TALK[2:]],
    "nulls": [
        *TALK[:2],
        {"role": "assistant", "content": None, "tool_calls": [CALL], "tool_call_id": None},
        {"role": "tool", "content": "rain", "tool_calls": None},
    ],
    "arguments as text": [
        *TALK[:2],
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}]},
        TALK[3],
    ],
    "flat calls": [
        *TALK[:2],
        {"role": "assistant", "tool_calls": [{"name": "weather", "parameters": ARGUMENTS}]},
        TALK[3],
    ],
    "calls as text": [*TALK[:2], {"role": "assistant", "tool_calls": json.dumps([CALL])}, TALK[3]],
    "before tools": [
        *TALK[:2],
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "weather", "arguments": json.dumps(ARGUMENTS)},
        },
        {"role": "function", "content": "rain"},
    ],
    "ShareGPT": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "How is it?"},
        {"from": "gpt", "value": "", "tool_calls": [CALL]},
        {"from": "observation", "value": "rain"},
    ],
}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return chat_tokenizer(tmp_path / "model", "tools")


def load(path: Path, tokenizer: Tokenizer, *, reward: Any = None, sft: bool = False, **data: Any) -> list[Prompt]:
    options = {"prompt_data": str(path), "label_key": None, "apply_chat_template": True} | data
    config = RunConfig(
        model=Model(hf_checkpoint="x"),
        data=Data(**options),
        reward=Reward(**(reward or {})),
        rollout=Rollout(rollout_function="sft" if sft else "single_turn"),
    )
    return load_prompts(config, tokenizer)


def jsonl(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path: Path, tokenizer: Tokenizer, place: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, tokenizer, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}:{place}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_chat_is_the_same_prompt(tmp_path: Path, tokenizer: Tokenizer, spelling: str) -> None:
    written = SPELLINGS[spelling]
    assert normalized(written) == TALK == normalized(TALK)
    expected = tokenizer.render_chat(TALK)
    assert "Łódź" in expected and "\\" not in expected and "None" not in expected and "[{" not in expected
    files = [jsonl(tmp_path, {"input": written})]
    if spelling != "texts":  # a column has one type
        files.append(tmp_path / "rows.parquet")
        parquet.write_table(pa.Table.from_pylist([{"input": written}]), files[1])
    for path in files:
        (prompt,) = load(path, tokenizer)
        assert (prompt.text, prompt.metadata["messages"]) == (expected, TALK)
    source = tmp_path / f"source_{abs(hash(spelling))}.py"
    source.write_text(
        "import numpy as np\nfrom miles_async.data import Prompt\n"
        f"WRITTEN = {written!r}\n"
        "def load(config, tokenizer):\n"
        "    messages = np.array(WRITTEN, dtype=object)  # as pandas reads a column\n"
        "    return [Prompt(0, 'x', np.array([5], np.int32), 'x', {'messages': messages})]\n"
    )
    (prompt,) = load(tmp_path / "none", tokenizer, data_source=f"{source}:load")
    assert prompt.metadata["messages"] == TALK


@pytest.mark.parametrize("spelling", ["parts", "nulls", "arguments as text"])
def test_an_agents_client_is_understood_as_a_file_is(spelling: str) -> None:
    written = SPELLINGS[spelling][:3] + TALK[3:]
    assert chat.normalized(msgspec.convert(written, list[chat.ChatMessage])) == TALK


def test_maps_and_arrays_of_parquet_are_objects_and_lists(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = pa.array([[[("role", "user"), ("content", "How is it?")]]], pa.list_(pa.map_(pa.string(), pa.string())))
    path = tmp_path / "maps.parquet"
    parquet.write_table(pa.table({"input": pairs}), path)
    (prompt,) = load(path, tokenizer)
    assert prompt.metadata["messages"] == TALK[1:2]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "usr", "content": "a"}, "unknown role 'usr'; did you mean \"user\"?; one of system, developer, user"),
        ({"role": "critic", "content": "a"}, "unknown role 'critic'; one of"),
        ({"from": "bard", "value": "a"}, "unknown role 'bard'; one of"),
        ({"role": 3, "content": "a"}, "unknown role 3; one of"),
        ({"content": "a"}, 'a message needs a "role" and a "content"'),
        ({"text": "a"}, 'a message needs a "role" and a "content"'),
        ({"role": "user"}, 'a message of the role "user" has no content'),
        ({"from": "human"}, 'a message of the role "user" has no content'),
        ({"role": "user", "content": 7}, "content must be a text or a list of text parts, not int"),
        ({"role": "user", "content": {"text": "a"}}, "content must be a text or a list of text parts, not dict"),
        ({"role": "user", "content": [{"type": "image_url"}]}, 'a part of the type "image_url"; only text is served'),
        ({"role": "user", "content": [{"type": "text"}]}, "a part of a content without a text"),
        ({"role": "user", "content": [7]}, 'a part of the type "int"'),
        ({"role": "assistant", "tool_calls": "f()"}, "tool_calls must be a list"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool_calls[0]: a call needs a function with a name"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}, "arguments must be an object"),
    ],
)
def test_a_message_that_cannot_be_meant_is_refused_with_its_row_and_number(
    tmp_path: Path, tokenizer: Tokenizer, message: dict[str, Any], says: str
) -> None:
    path = jsonl(tmp_path, {"input": TALK}, {"input": [*TALK, message]})
    found = refused(path, tokenizer, "2")
    assert "messages[4]" in found and says in found


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        # this template knows no developer
        ("tools", [{"role": "developer", "content": "Be brief."}, *TALK[1:2]], "role \"developer\": 'Be brief.'"),
        ("llama", [TALK[1], {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}, TALK[3]], "'I look.'"),
        ("chatml", TALK, "leaves out the call of 'weather'"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", TALK[:2], "'Be brief.'"),
        ("{% for m in messages %}{{ m.text }}{% endfor %}?", TALK[1:2], "'How is it?'"),
        ("gemma", TALK[:2], "System role not supported"),
        ("mistral", [TALK[1], TALK[1]], "roles must alternate"),
    ],
)
def test_what_a_template_would_leave_out_is_refused_with_its_row(
    tmp_path: Path, template: str, messages: Any, says: str
) -> None:
    tokenizer = chat_tokenizer(tmp_path / "model", template)
    path = jsonl(tmp_path, {"input": [5, 6]}, {"input": messages})
    assert says in refused(path, tokenizer, "2")
    table = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist([{"input": messages}]), table)
    assert says in refused(table, tokenizer, "row 1")


@pytest.mark.parametrize("template", ["tools", "thinking", "llama", "chatml", "gemma", "marked"])
def test_a_template_may_trim_quote_and_forget_what_was_thought(tmp_path: Path, template: str) -> None:
    tokenizer = chat_tokenizer(tmp_path / "model", template)
    messages = [
        {"role": "user", "content": '  "How"\n is it? '},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfine \n"},
        {"role": "user", "content": "Łódź\t"},
    ]
    (prompt,) = load(jsonl(tmp_path, {"input": messages}), tokenizer)
    assert "fine" in prompt.text
    check_rendered(
        [{"role": "tool", "content": 'a "b"\n'}], '{"output": "a \\"b\\"\\n"}'
    )  # as Llama shows what a tool answers


def test_an_endpoint_refuses_what_the_policy_would_not_see(tmp_path: Path, tokenizer: Tokenizer) -> None:
    messages = normalized([{"role": "developer", "content": "Be brief."}, *TALK[1:2]])
    with pytest.raises(ApiError, match='leaves out the content of a message of the role "developer"') as error:
        chat.check_rendered(messages, tokenizer.render_chat(messages))
    assert (error.value.status, error.value.param) == (400, "messages")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)
FIELDS = st.sampled_from(["role", "content", "from", "value", "tool_calls", "name", "type", "text"])
MESSAGE = st.dictionaries(FIELDS, JSON | st.sampled_from([*ROLES, "human", "gpt"]), max_size=4)


@given(st.lists(MESSAGE | JSON, max_size=3))
def test_whatever_stands_in_a_row_is_messages_or_refused(given_messages: Any) -> None:
    try:
        found = normalized(given_messages)
    except MessageError:
        return
    assert all(message["role"] in ROLES and isinstance(message["content"], str) for message in found)
    assert normalized(found) == found


# what a row must have for its reward


@pytest.mark.parametrize(
    ("reward", "row", "says"),
    [
        ({}, {"label": None}, 'it has no label, with which its reward "graded_match" compares'),
        ({}, {"label": ""}, 'it has a blank label, with which its reward "graded_match" compares'),
        ({"rm_type": "boxed_math"}, {"label": " \n"}, 'it has a blank label, with which its reward "boxed_math"'),
        ({"rm_type": "boxed_math"}, {"label": None}, 'its reward "boxed_math"'),
        ({"rm_type": "random"}, {"label": None, "metadata": {"rm_type": "f1"}}, 'its reward "f1"'),
        ({"rm_type": "gpqa"}, {"label": None, "metadata": {"choices": ["a", "b"]}}, 'its reward "gpqa"'),
        ({"rm_type": "gpqa"}, {"label": None, "metadata": {"correct_letter": " "}}, 'its reward "gpqa"'),
        ({"rm_type": "weighted_sum", "rm_weights": {"random": 1.0, "dapo": 1.0}}, {"label": None}, '"weighted_sum"'),
        ({}, {"label": "a", "metadata": {"rm_type": "mth"}}, "rm_type = 'mth'; did you mean \"math\"?"),
        ({}, {"label": "a", "metadata": {"rm_type": ["math"]}}, "rm_type = ['math']; one of"),
    ],
)
def test_a_row_that_its_reward_could_not_grade_is_refused_at_load(
    tmp_path: Path, tokenizer: Tokenizer, reward: dict[str, Any], row: dict[str, Any], says: str
) -> None:
    path = jsonl(tmp_path, {"input": "a", "label": "x", "metadata": {"answer_text": "x"}}, {"input": "b"} | row)
    assert says in refused(path, tokenizer, "2", reward=reward, label_key="label")
    table = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist([{"input": "b"} | row]), table)
    assert says in refused(table, tokenizer, "row 1", reward=reward, label_key="label")


def test_a_row_without_a_label_is_taken_where_its_reward_needs_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = {"input": "a", "label": None, "metadata": {"rm_type": "random"}}
    assert len(load(jsonl(tmp_path, row), tokenizer, label_key="label")) == 1
    answered = {"input": "a", "label": None, "metadata": {"correct_letter": "A"}}
    assert len(load(jsonl(tmp_path, answered), tokenizer, reward={"rm_type": "gpqa"}, label_key="label")) == 1


def test_a_row_with_nothing_to_learn_is_refused_at_load(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = jsonl(tmp_path, {"input": "a", "label": "x"}, {"input": TALK[:2], "label": None})
    assert "neither an assistant's message nor a label" in refused(path, tokenizer, "2", sft=True, label_key="label")
    for row in ({"input": "a", "label": " "}, {"input": TALK[:2], "label": ""}):
        blank = jsonl(tmp_path, {"input": "a", "label": "x"}, row)
        assert "nor a label" in refused(blank, tokenizer, "2", sft=True, label_key="label")
    assert len(load(jsonl(tmp_path, {"input": TALK[:2], "label": "x"}), tokenizer, sft=True, label_key="label")) == 1


def test_text_that_cannot_be_sent_is_refused_at_load(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "a"}\n{"input": "\\ud83d"}\n')  # half a pair, as Python's json writes it
    assert "half a surrogate pair" in refused(path, tokenizer, "2")
    for field in ('"\\ud83d", None, {}', '"x", "\\ud83d", {}', '"x", None, {"a": ["\\ud83d"]}'):
        source = tmp_path / f"source_{abs(hash(field))}.py"
        text, label, metadata = field.split(", ", 2)
        source.write_text(
            "import numpy as np\nfrom miles_async.data import Prompt\ndef load(config, tokenizer):\n"
            f"    return [Prompt(0, {text}, np.array([5], np.int32), {label}, {metadata})]\n"
        )
        with pytest.raises(
            DataError, match=r"prompt 0: its text, label or metadata holds half a surrogate pair \('\\ud83d'\)"
        ):
            load(tmp_path / "none", tokenizer, data_source=f"{source}:load")
