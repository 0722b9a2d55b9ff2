"""What the ledger's Lua scripts have to know of messages: taken from the message types."""

from __future__ import annotations

from bus.messages import SCHEMA_VERSION, Batch, DeadLetter, Message, ReadyGroup, Transition

_READ: tuple[type[Message], ...] = (Batch, ReadyGroup)
_WRITTEN: tuple[type[Message], ...] = (DeadLetter, Transition)


def lua() -> str:
    """Definitions, a line each: where a field lies in the array of its message (``BATCH_GROUP_IDS``), and functions that make a
    message of its fields (``pack_transition``), as far as they are given without a gap. The tag lies first, and Lua counts
    from 1.
    """
    lines = [f"local SCHEMA = '\\{SCHEMA_VERSION}'"]
    for kind in _READ:
        tag = str(kind.__struct_config__.tag).upper()
        lines += [f"local {tag}_{name.upper()} = {place}" for place, name in _fields(kind)]
    for kind in _WRITTEN:
        tag = str(kind.__struct_config__.tag)
        values = ", ".join(f"t.{name}" for _, name in _fields(kind))
        lines.append(f"local function pack_{tag}(t) return SCHEMA .. cmsgpack.pack({{ '{tag}', {values} }}) end")
    return "\n".join(lines) + "\n"


def _fields(kind: type[Message]) -> list[tuple[int, str]]:
    return list(enumerate(kind.__struct_fields__, 2))
