"""The configuration as a JSON schema, for editors that complete and check ``run.toml``: made of what the keys take and of their
comments, as configuration.md is (``generated.py``).
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from miles_async.config.schema import RunConfig
from miles_async.config.typed import is_section, table_of
from miles_async.config.words import NONE

Comments = Callable[[type], dict[str, str]]
_PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def schema(comments: Comments) -> dict[str, Any]:
    """``comments``: of a section, what is said of each of its keys."""
    whole = _section(RunConfig, comments)
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "run.toml of miles_async", **whole}


def _section(kind: Any, comments: Comments) -> dict[str, Any]:
    said = comments(kind) if kind is not RunConfig else {}
    keys = msgspec.structs.fields(kind)
    found: dict[str, Any] = {"type": "object", "additionalProperties": False}
    if "__doc__" in vars(kind) and kind.__doc__:
        found["description"] = " ".join(kind.__doc__.split())
    found["properties"] = {key.encode_name: _key(key, said.get(key.name, ""), comments) for key in keys}
    if required := [key.encode_name for key in keys if key.required]:
        found["required"] = required
    return found


def _key(key: msgspec.structs.FieldInfo, said: str, comments: Comments) -> dict[str, Any]:
    found = _type(key.type, comments)
    if said:
        found = {"description": said, **found}
    default = key.default_factory() if key.default_factory is not msgspec.NODEFAULT else key.default
    if default not in (msgspec.NODEFAULT, None) and not isinstance(default, msgspec.Struct):
        found["default"] = default
    return found


def _type(kind: Any, comments: Comments) -> dict[str, Any]:
    if (table := table_of(kind)) is not None:
        return {"type": "object", "additionalProperties": _section(table, comments)}
    if is_section(kind):
        return _section(kind, comments)
    if get_origin(kind) in (Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
        options = [_type(member, comments) for member in members]
        if len(members) < len(get_args(kind)):
            options.append({"const": NONE})
        return {"anyOf": options}
    if get_origin(kind) is Annotated:
        base, *notes = get_args(kind)
        limits = [
            (word, getattr(note, name)) for note in notes if isinstance(note, Meta) for name, word in _LIMITS.items()
        ]
        return _type(base, comments) | {word: limit for word, limit in limits if limit is not None}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is list:
        return {"type": "array", "items": _type(get_args(kind)[0], comments)}
    if get_origin(kind) is dict:
        of = get_args(kind)[1]
        return {"type": "object"} if of is Any else {"type": "object", "additionalProperties": _type(of, comments)}
    return {"type": _PLAIN[kind]}
