"""How the processes of a run prove to each other that they are of it: whoever can read the bus knows this key."""

from __future__ import annotations

import secrets

from bus.client import Bus


async def run_key(bus: Bus) -> str:
    """The key of this launch, made by whoever asks first: the same for all of its processes, on no command line or disk but
    that of Redis. A new launch has a new one (``Bus.forget_processes``)."""
    await bus.redis.setnx(bus.key("key"), secrets.token_urlsafe(24))
    return (await bus.redis.get(bus.key("key"))).decode()
