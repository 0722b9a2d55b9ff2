"""The configuration as types for Python's editors, ``miles_async/config/overrides.py``: each section a TypedDict with what its
keys take and are, made of the same as the JSON schema (``json_schema.py``).
"""

from __future__ import annotations

import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from miles_async.config.schema import RunConfig
from miles_async.config.typed import is_section, table_of

WIDTH = 116
HEAD = '''"""What :func:`miles_async.launch` and :func:`miles_async.configuration` take, typed, so that an editor completes it.

Promises: every key with its type and what it is; at run time nothing looks at it. It is made from ``config/schema/`` by
``make docs``: what a key is stands there.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict
'''


def module(comments: Callable[[type], dict[str, str]]) -> str:
    """The source. ``comments``: of a section, what is said of each of its keys."""
    found: dict[str, str] = {}
    for section in msgspec.structs.fields(RunConfig):
        _add(section.type, comments, found)
    whole = ["class Overrides(TypedDict, total=False):", '    """Sections, each with some of its keys."""', ""]
    whole += [f"    {section.encode_name}: {_name(section.type)}" for section in msgspec.structs.fields(RunConfig)]
    return "\n\n".join([HEAD, *(f"{source}\n" for source in found.values()), "\n".join(whole) + "\n"])


def _name(kind: type) -> str:
    return f"{kind.__name__}Keys"


def _add(kind: Any, comments: Callable[[type], dict[str, str]], found: dict[str, str]) -> None:
    """The class of a section, behind those that it names."""
    said = comments(kind)
    for key in msgspec.structs.fields(kind):
        inner = key.type if is_section(key.type) else table_of(key.type)
        if inner is not None:
            _add(inner, comments, found)
    lines = [f"class {_name(kind)}(TypedDict, total=False):"]
    if "__doc__" in vars(kind) and kind.__doc__:
        lines += [*_docstring(inspect.cleandoc(kind.__doc__)), ""]
    for key in msgspec.structs.fields(kind):
        lines += [f"    {key.encode_name}: {_type(key.type)}", *_docstring(said[key.name])]
    found[_name(kind)] = "\n".join(lines)


def _docstring(text: str) -> list[str]:
    text = " ".join(text.replace("\\", "\\\\").split())
    text += "" if text.endswith((".", ":")) else "."
    *lines, last = textwrap.wrap(f'"""{text}', WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"    {line}" for line in (*lines, f'{last}"""')]


def _type(kind: Any) -> str:
    if (table := table_of(kind)) is not None:
        return f"dict[str, {_name(table)}]"
    if is_section(kind):
        return _name(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " | ".join(map(_type, inner))
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return f"Literal[{', '.join(map(_quoted, inner))}]"
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(map(_type, inner))}]"
    return "None" if kind is type(None) else "Any" if kind is Any else kind.__name__


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
