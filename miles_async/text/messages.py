"""The messages of a chat in one form, whoever wrote them: rows of a file, a data source of the user, an agent's client.

    {"role": "system" | "developer" | "user" | "assistant" | "tool", "content": text, ...}
    tool_calls   [{"id", "type": "function", "function": {"name", "arguments": an object}}]

Promises: what comes out is what a chat template takes for what was meant. Content is a text: a list of text parts is theirs
joined; null, as an assistant's or a tool's may be, is empty. Arguments of a call that are given as JSON are the object.
ShareGPT's ``from`` and ``value`` are role and content. Unknown further fields stay as they are. What would be rendered as
something else, or not at all, is refused, with the number of its message. Pure; what is in the form already is not changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from miles_async.hooks.hook import nearest

ROLES = ("system", "developer", "user", "assistant", "tool")
# what other formats call them: ShareGPT and its heirs, and OpenAI before there were tools
OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}
THOUGHT = "</think>"  # what an assistant wrote before it, a template may forget

Messages = list[dict[str, Any]]


class MessageError(ValueError):
    """A message that cannot be meant; one line with its number."""


def normalized(messages: Sequence[Any]) -> Messages:
    """The messages in the form above. Raises MessageError."""
    if not messages:
        raise MessageError("there is no message")
    return [_normalized(message, f"messages[{number}]") for number, message in enumerate(messages)]


def check_rendered(messages: Messages, text: str, *, but_assistants: bool = False) -> None:
    """Refuse a chat of which the template has left something out: a content, or the name of a tool that is called.

    messages: normalized. A content may be trimmed or written as JSON; what an assistant thought before it spoke may be
    missing. but_assistants: all of theirs may. Raises MessageError.
    """
    for number, message in enumerate(messages):
        assistant = message["role"] == "assistant"
        if assistant and but_assistants:
            continue
        content = message["content"].rpartition(THOUGHT)[2] if assistant else message["content"]
        if not _is_in(content.strip(), text):
            raise MessageError(
                f'messages[{number}]: the chat template leaves out the content of a message of the role "{message["role"]}": '
                f"{content.strip()!r:.60}"
            )
        for call in message.get("tool_calls", ()):
            if not _is_in(call["function"]["name"], text):
                raise MessageError(
                    f"messages[{number}]: the chat template leaves out the call of {call['function']['name']!r:.60}"
                )


def parsed_json(text: str) -> Any:
    """What JSON ``text`` is; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_in(content: str, text: str) -> bool:
    return (
        content in text
        or json.dumps(content, ensure_ascii=False)[1:-1] in text
        or json.dumps(content, ensure_ascii=True)[1:-1] in text
    )


def _normalized(given: Any, place: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise MessageError(f"{place}: a message must be an object, not {type(given).__name__}")
    message = {key: value for key, value in given.items() if value is not None}
    if "role" not in message and "from" in message:
        message = {"role": message.pop("from"), "content": message.pop("value", None)} | message
    role = message["role"] = _role(message.get("role"), place)
    calls = _calls(message.pop("tool_calls", None), place)
    if role == "assistant" and isinstance(message.get("function_call"), Mapping):  # before there were tools
        calls += _calls([message.pop("function_call")], place)
    content = message.get("content")
    if content is None and role not in ("assistant", "tool"):
        raise MessageError(f'{place}: a message of the role "{role}" has no content')
    message = {"role": role, "content": _content(content, place)} | {
        key: value for key, value in message.items() if key not in ("role", "content")
    }
    return message | ({"tool_calls": calls} if calls else {})


def _role(role: Any, place: str) -> str:
    role = OTHER_ROLES.get(role, role) if isinstance(role, str) else role
    if role in ROLES:
        return role
    if role is None:
        raise MessageError(f'{place}: a message needs a "role" and a "content"')
    near = nearest(role, [*ROLES, *OTHER_ROLES]) if isinstance(role, str) else ""
    raise MessageError(f"{place}: unknown role {role!r:.40}{near}; one of {', '.join(ROLES)}")


def _content(content: Any, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise MessageError(f"{place}: content must be a text or a list of text parts, not {type(content).__name__}")
    return "".join(_part(part, place) for part in content)


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text":
        raise MessageError(f'{place}: a part of the type "{kind}"; only text is served')
    text = part.get("text")
    if not isinstance(text, str):
        raise MessageError(f"{place}: a part of a content without a text")
    return text


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if isinstance(calls, str):  # as columns of some datasets
        calls = parsed_json(calls) if calls.strip() else None
        calls = "no JSON" if calls is None else calls
    if calls is None:
        return []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise MessageError(f"{place}: tool_calls must be a list")
    return [_call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(calls)]


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MessageError(f"{place}: a call needs a function with a name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        parsed = parsed_json(arguments) if arguments.strip() else {}
        arguments = parsed if isinstance(parsed, dict) else arguments  # what a policy wrote wrong stays as it is
    if not isinstance(arguments, Mapping | str | None):
        raise MessageError(f"{place}: arguments must be an object, or its JSON")
    arguments = {} if arguments is None else arguments
    named = {"id": call["id"]} if call.get("id") else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
