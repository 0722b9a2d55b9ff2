"""A bus takes writes: a Redis that is a replica is refused before anything is started on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus import connect
from bus.errors import NoRedisError
from bus.server import RedisServer


async def test_a_replica_is_refused_with_the_name_of_its_primary(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    try:
        bus = await connect(server.start(), "replica")
        await bus.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(NoRedisError, match=r"is a replica, which takes no writes; its primary is 127\.0\.0\.1:1"):
            await connect(server.url, "replica")
        await bus.redis.execute_command("REPLICAOF", "NO", "ONE")
        await (await connect(server.url, "replica")).close()
        await bus.close()
    finally:
        server.stop()
