"""Text that can be written: Python's may hold halves of surrogate pairs, for which UTF-8 has no bytes.

Promises: what :func:`well_formed` gives can be encoded as UTF-8; what could be before is the same. Such halves come from JSON
(``"\\ud83d"``), from file names and from programs' output; each becomes U+FFFD, as where bytes are decoded.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")

T = TypeVar("T")


def well_formed(value: T) -> T:
    """``value`` with every text in it, and in its lists, tuples and dicts, fit for UTF-8. Raises RecursionError."""
    return _well_formed(value)


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        if value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value):
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_well_formed(key): _well_formed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_well_formed(item) for item in value]
    if type(value) is tuple:
        return tuple(_well_formed(item) for item in value)
    return value


def is_json_of_half_a_letter(data: bytes) -> bool:
    """Whether JSON that cannot be decoded is sound but for halves of surrogate pairs (msgspec speaks of truncation there)."""
    if _ESCAPED.search(data) is None:
        return False
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def words_of(error: BaseException) -> str:
    """What an exception of somebody else's says, for a record: also where it cannot say it, or not in UTF-8."""
    try:
        text = str(error)
    except Exception as another:
        text = f"its text cannot be made: {type(another).__name__}"
    return well_formed(f"{type(error).__name__}: {text}")
