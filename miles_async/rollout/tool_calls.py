"""Built-in tool-call parsers: from a turn's text, special tokens included, to the calls in it. Pure.

Each returns ``[{"name": str, "arguments": dict}]``; what is malformed is no call, so that a turn without a sound call ends
the conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"


def qwen(text: str) -> list[dict[str, Any]]:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of them (Qwen2.5, Qwen3, Hermes)."""
    return _calls(_objects(_TAGGED.findall(text)), "arguments")


def python_tag(text: str) -> list[dict[str, Any]]:
    """``<|python_tag|>{"name": ..., "parameters": {...}}``, further ones behind ``;`` (Llama 3.1 and later)."""
    _, tag, body = text.partition(_PYTHON_TAG)
    found: list[Any] = []
    decoder = json.JSONDecoder()
    while tag and (body := body.lstrip("; \n")).startswith("{"):
        try:
            value, end = decoder.raw_decode(body)
        except (ValueError, RecursionError):
            break
        found.append(value)
        body = body[end:]
    return _calls(found, "parameters")


def _objects(texts: Iterable[str]) -> Iterable[Any]:
    for text in texts:
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            continue


def _calls(values: Iterable[Any], key: str) -> list[dict[str, Any]]:
    return [
        {"name": value["name"], "arguments": value.get(key, {})}
        for value in values
        if isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get(key, {}), dict)
    ]
