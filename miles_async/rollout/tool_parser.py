"""The tool-call parser of a run, a user's with its calls looked at.

Promises: what it gives is a list of calls that a tool can be called with, every text in it fit for UTF-8; a parser that raises,
or gives something else, costs the rollout, with a line that names ``rollout.tool_call_parser`` and what it gave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from miles_async.config.schema import RunConfig
from miles_async.hooks.calls import HookFailed, called, refused
from miles_async.rollout.failures import RolloutError
from miles_async.rollout.registry import TOOL_CALL_PARSER
from miles_async.text.unicode import well_formed

Calls = list[dict[str, Any]]
WANTED = 'a list of {"name": text, "arguments": {text: value}}'


def tool_call_parser(config: RunConfig) -> Callable[[str], Calls]:
    """The parser from a turn's text to its calls. Raises HookError; the parser raises RolloutError."""
    (function,) = TOOL_CALL_PARSER.functions(config)
    return function if config.rollout.tool_call_parser in TOOL_CALL_PARSER.built_in else checked(function)


def checked(function: Callable[[str], Any]) -> Callable[[str], Calls]:
    """``function`` with what it gives looked at."""

    def parse(text: str) -> Calls:
        try:
            found = called(TOOL_CALL_PARSER, function, text)
            if not isinstance(found, list | tuple) or not all(_is_call(call) for call in found):
                raise refused(TOOL_CALL_PARSER, function, found, WANTED)
            return [well_formed({"name": call["name"], "arguments": call["arguments"]}) for call in found]
        except HookFailed as error:
            raise RolloutError(str(error), error.trace) from error
        except RecursionError:
            raise RolloutError(f"{TOOL_CALL_PARSER.key}: the arguments of a call are nested too deeply") from None

    return parse


def _is_call(call: Any) -> bool:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return False
    arguments = call.get("arguments")
    return isinstance(arguments, dict) and all(isinstance(name, str) for name in arguments)
