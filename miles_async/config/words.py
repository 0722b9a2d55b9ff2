"""What a key takes and what it was given, in the words of an error. Pure."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable
from datetime import date, time
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

NONE = "none"  # TOML has no null: this stands for it wherever a key may be unset


def allowed(kind: Any) -> str:
    """What a key takes, in words: the type, its limits, its choices."""
    texts = []
    for member in _members(kind):
        limits: list[str] = []
        if get_origin(member) is Annotated:
            member, *notes = get_args(member)
            for note in notes:
                if isinstance(note, Meta):
                    signs = (">=", note.ge), (">", note.gt), ("<=", note.le), ("<", note.lt)
                    limits += [f"{sign} {limit}" for sign, limit in signs if limit is not None]
        if get_origin(member) is Literal:
            texts.append(one_of(get_args(member)))
        elif get_origin(member) is list:
            (item,) = get_args(member)
            if get_origin(item) is Literal:
                texts.append("a list of " + one_of(get_args(item)).removeprefix("one of "))
                continue
            words = {str: "a list of strings", int: "a list of integers"}
            texts.append(words.get(item) or f"a list of numbers{allowed(item).removeprefix('a number')}")
        elif isinstance(member, type) and issubclass(member, msgspec.Struct):
            texts.append("a table")
        elif get_origin(member) is dict:
            texts.append("a table of numbers" if get_args(member)[1] is float else "a table")
        else:
            words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
            texts.append(" ".join([words[member], " and ".join(limits)]).strip())
    return " or ".join(texts + ([f'"{NONE}"'] if optional(kind) else []))


def show(value: Any) -> str:
    """``value`` as TOML where it is one of our types, else as Python shows it; never longer than a line."""
    try:
        text = toml(value)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(name)} = {toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"no TOML for {type(value).__name__}")


def nearest(value: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(names), 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def one_of(values: Iterable[Any]) -> str:
    return "one of " + ", ".join(show(value) for value in values)


def _members(kind: Any) -> list[Any]:
    """The alternatives of an annotation, without None."""
    if get_origin(kind) in (Union, types.UnionType):
        return [member for member in get_args(kind) if member is not type(None)]
    return [kind]


def optional(kind: Any) -> bool:
    return type(None) in get_args(kind)


def plain(kind: Any) -> set[Any]:
    return {get_args(m)[0] if get_origin(m) is Annotated else m for m in _members(kind)}


def choices(kind: Any) -> list[Any]:
    return [choice for member in _members(kind) if get_origin(member) is Literal for choice in get_args(member)]
