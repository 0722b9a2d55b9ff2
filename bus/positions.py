"""Where each field of a message lies in its msgpack array, for the ledger's Lua scripts: taken from the message types."""

from __future__ import annotations

from bus.messages import Batch, DeadLetter, Message, ReadyGroup, Transition

# what the scripts read or write themselves
_OF_THE_SCRIPTS: tuple[type[Message], ...] = (Batch, DeadLetter, ReadyGroup, Transition)


def lua() -> str:
    """A local ``FIELD``: ``message[FIELD.batch.group_ids]``. The tag lies first, and Lua counts from 1."""
    tables = []
    for kind in _OF_THE_SCRIPTS:
        places = ", ".join(f"{name} = {place}" for place, name in enumerate(kind.__struct_fields__, 2))
        tables.append(f"{kind.__struct_config__.tag} = {{ {places} }}")
    return f"local FIELD = {{ {', '.join(tables)} }}\n"
