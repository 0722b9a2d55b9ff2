"""Chats as transformers renders them, from every file in which a checkpoint can have its templates and special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_models import TEMPLATES, chat_model, chat_tokenizer, edit

from miles_async.text.tokenizer import Tokenizer, TokenizerError

TALK = [{"role": "user", "content": "2+2? <b>é</b>"}, {"role": "assistant", "content": " 4 "}]
MORE = [{"role": "user", "content": "sure?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "é & <x>", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "add", "arguments": {"a": [1, "é"], "b": None}}}
CALLED = [
    {"role": "user", "content": "add"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"x": "3\\n"}', "tool_call_id": "a1b2c3d4e"},
]
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one turn": (TALK[:1], {}),
    "two turns": ([*TALK, *MORE[:1]], {}),
    "answered": ([*TALK, *MORE], {"add_generation_prompt": False}),
    "a system": ([*SYSTEM, *TALK[:1]], {"date_string": "1 Jan 2026"}),
    "not thinking": (TALK[:1], {"enable_thinking": False}),
    "tools": ([*SYSTEM, *CALLED[:1]], {"tools": [TOOL]}),
    "called": (CALLED, {"tools": [TOOL]}),
}


def theirs(directory: Path, messages: list[dict[str, Any]], **variables: Any) -> str:
    """What transformers renders, or its refusal."""
    from transformers import AutoTokenizer

    options = {"tokenize": False, "add_generation_prompt": True} | variables
    try:
        return AutoTokenizer.from_pretrained(directory).apply_chat_template(messages, **options)
    except Exception as error:
        return f"refused: {' '.join(str(error).split())}"


def ours(directory: Path, messages: list[dict[str, Any]], **variables: Any) -> str:
    try:
        return Tokenizer(directory).render_chat(messages, **variables)
    except TokenizerError as error:
        return "refused: " + str(error).removeprefix(f"chat template of {directory}: ")


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_of_the_field_render_as_in_transformers(tmp_path: Path, template: str) -> None:
    directory = chat_model(tmp_path, template)
    for name, (messages, variables) in CHATS.items():
        assert ours(directory, messages, **variables) == theirs(directory, messages, **variables), name


def test_the_places_of_generation_blocks_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = chat_tokenizer(tmp_path, "marked")
    found = tokenizer.rendered([*TALK, *MORE], add_generation_prompt=False)
    made = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [*TALK, *MORE], return_dict=True, return_assistant_tokens_mask=True
    )
    mask = [0] * len(found.text)
    for start, end in found.generated:
        mask[start:end] = [1] * (end - start)
    written = "".join(letter for letter, one in zip(found.text, mask, strict=True) if one)
    assert written == "4<|im_end|><think>\nhm\n</think>\n\nyes<|im_end|>"
    tokens = [token for token, one in zip(made["input_ids"], made["assistant_masks"], strict=True) if one]
    assert tokenizer.encode(written) == tokens


NAMED = [{"name": "default", "template": TEMPLATES["chatml"]}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]


def additional(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(TEMPLATES["gemma"])
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("T{{ tools | length }}")


def old_form(directory: Path) -> None:
    edit(directory / "tokenizer_config.json", eos_token="<|endoftext|>", chat_template="{{ eos_token }}{{ bos_token }}")
    edit(directory / "special_tokens_map.json", eos_token={"content": "<|im_end|>", "lstrip": False})


def new_form(directory: Path) -> None:
    old_form(directory)
    added = {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    edit(directory / "tokenizer_config.json", added_tokens_decoder={"101": added})


@pytest.mark.parametrize(
    "prepare",
    [
        lambda directory: edit(directory / "tokenizer_config.json", chat_template=NAMED),
        lambda directory: edit(directory / "tokenizer_config.json", chat_template=NAMED[:1]),
        lambda directory: (directory / "chat_template.jinja").write_text(TEMPLATES["marked"]),
        additional,
        old_form,
        new_form,
    ],
)
def test_templates_and_special_tokens_are_found_where_transformers_finds_them(tmp_path: Path, prepare: Any) -> None:
    directory = chat_model(tmp_path, "chatml")
    prepare(directory)
    for variables in ({}, {"tools": [TOOL]}):
        assert ours(directory, TALK, **variables) == theirs(directory, TALK, **variables)
        assert not ours(directory, TALK, **variables).startswith("refused")


def test_a_token_that_only_the_configuration_adds_is_one_token_as_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = chat_model(tmp_path, "chatml")
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    edit(directory / "tokenizer_config.json", added_tokens_decoder={"128": {"content": "<|new|>", **flags}})
    assert Tokenizer(directory).encode("a<|new|>b") == AutoTokenizer.from_pretrained(directory).encode("a<|new|>b")
    edit(directory / "tokenizer_config.json", added_tokens_decoder={"300": {"content": "<|new|>", **flags}})
    with pytest.raises(TokenizerError, match=r'lacks "<\|new\|>", which has the id 300 in .* and would get 128'):
        Tokenizer(directory)


def test_the_template_of_a_processor_serves_where_there_is_no_other(tmp_path: Path) -> None:
    directory = chat_model(tmp_path, None)
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "P"}))
    assert ours(directory, TALK) == "P"
    (directory / "chat_template.jinja").write_text("J")
    assert ours(directory, TALK) == "J"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([{"name": "rag", "template": "x"}], r'several chat templates, and none is called "default": rag'),
        ([{"name": "default"}], r"tokenizer_config\.json: chat_template must be a text, or a list of names"),
        (7, r"tokenizer_config\.json: chat_template must be a text, or a list of names"),
    ],
)
def test_templates_that_cannot_be_meant_are_refused_in_one_line(tmp_path: Path, given: Any, says: str) -> None:
    directory = chat_model(tmp_path, None)
    edit(directory / "tokenizer_config.json", chat_template=given)
    with pytest.raises(TokenizerError, match=says) as error:
        Tokenizer(directory).render_chat(TALK)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["chat_template", "continue_final_message", "add_generation_prompt", "tokenize"])
def test_an_argument_that_is_no_variable_is_refused_instead_of_ignored(tmp_path: Path, name: str) -> None:
    with pytest.raises(TokenizerError, match=f'apply_chat_template_kwargs: "{name}" is no variable'):
        chat_tokenizer(tmp_path, "chatml").for_chats(None, {"enable_thinking": True, name: True})
