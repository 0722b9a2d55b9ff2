"""Prompts as chats: the template and its variables, tools, and the messages that agents need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from miles_async.config.schema import Data, Model, RunConfig
from miles_async.data import DataError, Prompt, load_prompts
from miles_async.models import builtin
from miles_async.text.tokenizer import Tokenizer, TokenizerError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": "number"}}}
TEMPLATE = """{% if tools %}{{ tools[0].function.name }}: {% endif %}{% for m in messages %}<{{ m.content }}>{% endfor %}
{%- if add_generation_prompt and enable_thinking %} think{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("words")
    builtin.make_model("builtin:words", directory, seed=0)
    return Tokenizer(directory)


@pytest.fixture
def template(tmp_path: Path) -> str:
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATE)
    return str(path)


def load(tmp_path: Path, tokenizer: Tokenizer, *rows: dict[str, Any], **data: Any) -> list[Prompt]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"prompt_data": str(path), "label_key": None, "apply_chat_template": True} | data
    return load_prompts(RunConfig(model=Model(hf_checkpoint="x"), data=Data(**options)), tokenizer)


def refused(tmp_path: Path, tokenizer: Tokenizer, *rows: dict[str, Any], **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(tmp_path, tokenizer, *rows, **data)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_template_of_ones_own_takes_the_place_of_the_checkpoints(
    tmp_path: Path, tokenizer: Tokenizer, template: str
) -> None:
    (prompt,) = load(tmp_path, tokenizer, {"input": CHAT}, chat_template_path=template)
    assert prompt.text == "<Be brief.><Hi>"
    assert tokenizer.decode(prompt.tokens.tolist()) == prompt.text
    (prompt,) = load(tmp_path, tokenizer, {"input": CHAT})  # the tokenizer that was handed in is as it was
    assert prompt.text == "system: Be brief.\nuser: Hi\nassistant: "


def test_variables_of_the_configuration_reach_the_template(tmp_path: Path, tokenizer: Tokenizer, template: str) -> None:
    variables = {"enable_thinking": True, "tools": [TOOL]}
    (prompt,) = load(
        tmp_path, tokenizer, {"input": "Hi"}, chat_template_path=template, apply_chat_template_kwargs=variables
    )
    assert prompt.text == "add: <Hi> think"
    assert prompt.metadata == {}  # they are the template's affair


def test_what_a_call_sets_wins_over_what_the_run_sets(tokenizer: Tokenizer, template: str) -> None:
    chats = tokenizer.for_chats(template, {"enable_thinking": True})
    assert chats.render_chat(CHAT[1:]) == "<Hi> think"
    assert chats.render_chat(CHAT[1:], enable_thinking=False) == "<Hi>"
    assert chats.render_chat(CHAT[1:], add_generation_prompt=False) == "<Hi>"
    assert chats.encode("Hi") == tokenizer.encode("Hi")


def test_a_variable_may_have_the_name_of_a_special_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ eos_token }}")
    assert tokenizer.for_chats(path, {}).render_chat([]) == "<eos>"
    assert tokenizer.for_chats(path, {"eos_token": "end"}).render_chat([]) == "end"


def test_tools_reach_the_template_and_stay_in_the_metadata(tmp_path: Path, tokenizer: Tokenizer, template: str) -> None:
    rows = [
        {"input": "Hi", "fns": [TOOL], "metadata": {"x": 1}},
        {"input": "Hi", "fns": json.dumps([TOOL])},
        {"input": "Hi", "fns": None},
        {"input": "Hi", "fns": []},
        {"input": "Hi"},
    ]
    prompts = load(tmp_path, tokenizer, *rows, tool_key="fns", chat_template_path=template)
    assert [prompt.text for prompt in prompts] == ["add: <Hi>"] * 2 + ["<Hi>"] * 3
    assert [prompt.metadata for prompt in prompts] == [{"x": 1, "tools": [TOOL]}, {"tools": [TOOL]}, {}, {}, {}]


def test_tools_stay_in_the_metadata_of_prompts_that_are_no_chats(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (prompt,) = load(tmp_path, tokenizer, {"input": "Hi", "t": [TOOL]}, tool_key="t", apply_chat_template=False)
    assert (prompt.text, prompt.metadata) == ("Hi", {"tools": [TOOL]})


def test_messages_stay_in_the_metadata_where_a_prompt_was_given_as_messages(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    chat, text = load(tmp_path, tokenizer, {"input": CHAT, "metadata": {"x": 1}}, {"input": "Hi"})
    assert chat.metadata == {"x": 1, "messages": CHAT}
    assert text.metadata == {}


def test_a_metadata_key_of_none_leaves_the_rows_metadata_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (prompt,) = load(tmp_path, tokenizer, {"input": "Hi", "metadata": "no object"}, metadata_key=None)
    assert prompt.metadata == {}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input": CHAT, "metadata": {"messages": []}}, 'the metadata has a "messages" of its own'),
        ({"input": "Hi", "tools": [TOOL], "metadata": {"tools": 3}}, 'the metadata has a "tools" of its own'),
        ({"input": "Hi", "tools": [3]}, '"tools" must be a list of objects, not a list'),
        ({"input": "Hi", "tools": {}}, '"tools" must be a list of objects, not an object'),
        ({"input": "Hi", "tools": "add"}, '"tools" is text, but not JSON'),
        ({"input": [{"role": "user", "content": None}]}, 'messages[0]: a message of the role "user" has no content'),
        ({"input": [{"role": "user", "content": "Hi", "n": 2**70}]}, "holds an integer of more than 64 bits"),
    ],
)
def test_a_row_that_is_no_usable_chat_is_named(
    tmp_path: Path, tokenizer: Tokenizer, row: dict[str, Any], expected: str
) -> None:
    message = refused(tmp_path, tokenizer, {"input": "fine"}, row, tool_key="tools")
    assert f"{tmp_path / 'prompts.jsonl'}:2: " in message
    assert expected in message


def test_a_tool_key_that_no_row_has_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    message = refused(tmp_path, tokenizer, {"input": "Hi", "tools": [TOOL]}, tool_key="tool")
    assert message == f'data.tool_key = "tool": no row of {tmp_path / "prompts.jsonl"} has this key'


def test_a_template_that_cannot_be_used_is_named(tmp_path: Path, tokenizer: Tokenizer, template: str) -> None:
    absent = str(tmp_path / "absent.jinja")
    assert f"{absent}: No such file" in refused(tmp_path, tokenizer, {"input": "Hi"}, chat_template_path=absent)
    Path(template).write_text("{% if %}")
    assert f"chat template of {template}: " in refused(tmp_path, tokenizer, {"input": "a"}, chat_template_path=template)
    Path(template).write_text("{{ 1 // 0 }}")
    with pytest.raises(TokenizerError, match=f"chat template of {template}: .*zero"):
        tokenizer.for_chats(template, {}).render_chat(CHAT)


def test_chats_with_tools_come_out_of_parquet_as_out_of_jsonl(
    tmp_path: Path, tokenizer: Tokenizer, template: str
) -> None:
    rows = [
        {"input": CHAT, "tools": [TOOL]},
        {"input": [{"role": "user", "content": "Hi", "name": "me"}], "tools": None},
    ]
    path = tmp_path / "prompts.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    options = {"tool_key": "tools", "chat_template_path": template}
    for prompts in (
        load(tmp_path, tokenizer, *rows, **options),
        load(tmp_path, tokenizer, prompt_data=str(path), **options),
    ):
        assert [prompt.text for prompt in prompts] == ["add: <Be brief.><Hi>", "<Hi>"]
        assert [prompt.metadata["messages"] for prompt in prompts] == [row["input"] for row in rows]
