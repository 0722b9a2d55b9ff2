"""Chat templates: jinja2 as transformers sets it up for them, without importing transformers (2 s and 35 MB in each worker).

Promises: a template renders what ``transformers.utils.chat_template_utils`` (5.19) makes of it, for the same variables;
``{% generation %}`` blocks are known by their places in the text. A template is not our code: it runs in jinja's sandbox, and
whatever it raises is a refusal of the messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


@dataclass(frozen=True)
class Rendered:
    """A chat as text. ``generated``: start and end, in characters, of what stands in ``{% generation %}`` blocks."""

    text: str
    generated: tuple[tuple[int, int], ...] = ()


class ChatTemplate:
    def __init__(self, source: str) -> None:
        """Raises jinja2.TemplateError: it is no template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._template = environment.from_string(source)
        self._blocks: _GenerationBlock = environment.extensions[_GenerationBlock.identifier]  # type: ignore[assignment]

    def render(self, variables: dict[str, Any]) -> Rendered:
        """Raises what the template raises."""
        done: list[str] = []
        self._blocks.begin(lambda: sum(map(len, done)))
        for piece in self._template.generate(variables):
            done.append(piece)
        return Rendered("".join(done), tuple(self._blocks.found))


class _GenerationBlock(Extension):
    """``{% generation %}`` marks what the assistant wrote. It is a call block, as in transformers: what is set within is not
    seen behind it."""

    tags = {"generation"}

    def begin(self, length: Callable[[], int]) -> None:
        self.found: list[tuple[int, int]] = []
        self._length = length

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text, start = caller(), self._length()
        self.found.append((start, start + len(text)))
        return text


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own escapes HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
