"""Built-in tool-call parsers: from a turn's text, special tokens included, to the calls in it. Pure.

Each returns ``[{"name": str, "arguments": dict}]``, every text in it fit for UTF-8. A call is what JSON says it is from its
tag on: a tag within its texts ends nothing. ``parameters`` and ``arguments`` mean the same, also as a text that holds the
object; a list, or several objects behind one tag, are as many calls. What is malformed is no call, so that a turn without a
sound call ends the conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from miles_async.text.unicode import well_formed

ARGUMENTS = ("arguments", "parameters")  # what the arguments of a call are called
_BETWEEN = re.compile(r"[\s,;]*")
_decoder = json.JSONDecoder()


def qwen(text: str) -> list[dict[str, Any]]:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of them (Qwen2.5, Qwen3, Hermes)."""
    return _calls(text, "<tool_call>")


def python_tag(text: str) -> list[dict[str, Any]]:
    """``<|python_tag|>{"name": ..., "parameters": {...}}``, further ones behind ``;`` (Llama 3.1 and later)."""
    return _calls(text, "<|python_tag|>")


def parsed_arguments(given: Any) -> dict[str, Any] | None:
    """The arguments of a call as an object: null and an empty text are none of them; None: they are no object."""
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            return None
    given = {} if given is None else given
    return given if isinstance(given, dict) else None


def _calls(text: str, tag: str) -> list[dict[str, Any]]:
    found = (_call(value) for value in _behind(text, tag))
    return [call for call in found if call is not None]


def _behind(text: str, tag: str) -> Iterator[Any]:
    """The JSON values that stand behind each ``tag`` of ``text``; the entries of one that is a list."""
    place = text.find(tag)
    while place >= 0:
        place += len(tag)
        while text.startswith(("{", "["), place := _skip(text, place)):
            try:
                value, place = _decoder.raw_decode(text, place)
            except (ValueError, RecursionError):
                break
            yield from value if isinstance(value, list) else [value]
        place = text.find(tag, place)


def _skip(text: str, place: int) -> int:
    found = _BETWEEN.match(text, place)
    return place if found is None else found.end()


def _call(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):  # as an OpenAI client shows one
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = parsed_arguments(next((value[key] for key in ARGUMENTS if value.get(key) is not None), None))
    try:
        return None if arguments is None else well_formed({"name": value["name"], "arguments": arguments})
    except RecursionError:
        return None
