"""The built-in data source: the rows of ``data.prompt_data`` as prompts.

A row's input is text, a list of token ids, or (with ``apply_chat_template``) a list of messages in any of the forms that
``text/messages.py`` takes; text is a single user message there. Promises: a row that cannot be used is refused with its place,
never skipped; so is one of which the chat template would leave something out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from miles_async.config.schema import Data, RunConfig
from miles_async.data.prompt import DataError, Prompt
from miles_async.data.rows import Row, kind, rows, sources
from miles_async.data.usable import fault
from miles_async.text.messages import MessageError, Messages, check_rendered, normalized
from miles_async.text.tokenizer import Tokenizer, TokenizerError


def files(config: RunConfig, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of ``config.data.prompt_data`` in file order, one source behind the other.

    Raises DataError: no file, a malformed row, a missing key, an empty prompt, an id the model has no embedding for, a
    ``tool_key`` that no row has.
    """
    data = config.data
    prompts: list[Prompt] = []
    any_tools = data.tool_key is None
    for number, source in enumerate(sources(data)):
        for place, row in rows(source):
            prompt = _prompt(data, len(prompts), number, place, row, tokenizer)
            if (wrong := fault(config, prompt, tokenizer, labelled=data.label_key is not None)) is not None:
                raise DataError(f"{place}: {wrong}")
            prompts.append(prompt)
            any_tools = any_tools or data.tool_key in row
    if not any_tools:
        raise DataError(f'data.tool_key = "{data.tool_key}": no row of {", ".join(sources(data))} has this key')
    return prompts


def _prompt(data: Data, index: int, source: int, place: str, row: Row, tokenizer: Tokenizer) -> Prompt:
    metadata = _metadata(data, place, row)
    tools = _tools(data, place, row)
    if tools:
        metadata = _with(metadata, "tools", tools, place)
    text, tokens, messages = _input(data, place, row, tools, tokenizer)
    if messages is not None:
        if metadata.get("messages") == row[data.input_key]:  # the same, as they were written
            metadata = {key: value for key, value in metadata.items() if key != "messages"}
        metadata = _with(metadata, "messages", messages, place)
    return Prompt(index, text, np.array(tokens, dtype=np.int32), _label(data, place, row), metadata, source)


def _input(
    data: Data, place: str, row: Row, tools: list[Any] | None, tokenizer: Tokenizer
) -> tuple[str, Sequence[int], Messages | None]:
    """Text and token ids of a row's prompt, and its messages where it was given as a list of them."""
    messages = None
    if data.input_key not in row:
        raise DataError(f'{place}: no key "{data.input_key}" (data.input_key); it has {", ".join(row) or "none"}')
    value = row[data.input_key]
    if _is_chat(value):
        if not data.apply_chat_template:
            raise DataError(f'{place}: "{data.input_key}" holds messages: set data.apply_chat_template = true')
        messages = _messages(place, value)
        text, tokens = _chat(place, messages, tools, tokenizer)
    elif isinstance(value, str):
        if data.apply_chat_template and value:
            text, tokens = _chat(place, [{"role": "user", "content": value}], tools, tokenizer)
        else:
            text, tokens = value, tokenizer.encode(value)
    elif isinstance(value, list) and all(type(item) is int for item in value):
        tokens = value
        _check_ids(place, tokens, tokenizer)  # before decoding, which would fail less clearly
        text = tokenizer.decode(tokens, skip_special_tokens=False)
    else:
        raise DataError(
            f'{place}: "{data.input_key}" must be text, a list of token ids or a list of messages, not {kind(value)}'
        )
    if not tokens:
        raise DataError(f'{place}: "{data.input_key}" is an empty prompt')
    _check_ids(place, tokens, tokenizer)
    return text, tokens, messages


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _messages(place: str, value: list[Any]) -> Messages:
    try:
        return normalized(value)
    except MessageError as error:
        raise DataError(f"{place}: {error}") from None


def _chat(place: str, messages: Messages, tools: list[Any] | None, tokenizer: Tokenizer) -> tuple[str, Sequence[int]]:
    variables: dict[str, Any] = {"tools": tools} if tools else {}
    try:
        text = tokenizer.render_chat(messages, **variables)
        check_rendered(messages, text)
    except (TokenizerError, MessageError) as error:
        raise DataError(f"{place}: {error}") from None
    return text, tokenizer.encode(text)


def _check_ids(place: str, tokens: Sequence[int], tokenizer: Tokenizer) -> None:
    if tokens and (min(tokens) < 0 or max(tokens) >= tokenizer.vocab_size):
        wrong = next(token for token in tokens if not 0 <= token < tokenizer.vocab_size)
        raise DataError(f"{place}: token id {wrong} is not in the model's vocabulary of {tokenizer.vocab_size}")


def _label(data: Data, place: str, row: Row) -> str | None:
    """The label as text; a number, list or table becomes its JSON."""
    if data.label_key is None:
        return None
    if data.label_key not in row:
        raise DataError(f'{place}: no key "{data.label_key}" (data.label_key; "none" where prompts have no label)')
    value = row[data.label_key]
    if isinstance(value, str | None):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f'{place}: "{data.label_key}" cannot be a label: {error}') from None


def _tools(data: Data, place: str, row: Row) -> list[Any] | None:
    """The tools of a row: a list of objects, or its JSON as text; None where it has none."""
    if data.tool_key is None or row.get(data.tool_key) is None:
        return None
    value = row[data.tool_key]
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise DataError(f'{place}: "{data.tool_key}" is text, but not JSON: {error}') from None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f'{place}: "{data.tool_key}" must be a list of objects, not {kind(value)}')
    return value


def _metadata(data: Data, place: str, row: Row) -> dict[str, Any]:
    value = None if data.metadata_key is None else row.get(data.metadata_key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f'{place}: "{data.metadata_key}" must be an object, not {kind(value)}')
    return value


def _with(metadata: dict[str, Any], key: str, value: Any, place: str) -> dict[str, Any]:
    if key in metadata and metadata[key] != value:
        raise DataError(f'{place}: the metadata has a "{key}" of its own, which is the place of the prompt\'s')
    return metadata | {key: value}
