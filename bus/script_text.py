"""The text of a Lua script that shares definitions with others.

Promises: a script gets the definitions that it names, directly or by way of others, in their order, and no other one: Redis
makes each of them anew in every call, which takes longer than what most calls are for.
"""

from __future__ import annotations

import re

_PART = re.compile(r"^(?=local )", re.MULTILINE)
_DEFINED = re.compile(r"local (?:function )?(\w+)")
_WORDS = re.compile(r"--.*|'[^'\n]*'|(\w+)")  # neither in comments nor in strings


def with_parts(script: str, parts: str) -> str:
    """``script`` behind what it uses of ``parts``: definitions, each of one name, from a "local" at the start of a line on."""
    used, text = _names(script), script
    for part in reversed(_PART.split(parts)):
        defined = _DEFINED.match(part)
        if defined and defined[1] in used:
            used |= _names(part)
            text = part + text
    return text


def _names(text: str) -> set[str]:
    return set(_WORDS.findall(text))
