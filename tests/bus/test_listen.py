"""A Redis of our own that other machines reach: at one address, with a password that nobody finds."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import psutil
import pytest

from bus import NoRedisError, connect
from bus.listen import Address
from bus.server import RedisServer


def files_with(directory: Path, text: str) -> list[Path]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) >= 2  # its log and its data
    return [path for path in files if text.encode() in path.read_bytes()]


async def test_a_server_at_an_address_asks_for_a_password_that_is_on_no_command_line_and_in_no_file(
    tmp_path: Path,
) -> None:
    server = RedisServer(tmp_path, listen=Address("127.0.0.1"))
    try:
        url = server.start()
        found = re.fullmatch(r"redis://:([A-Za-z0-9_-]{32})@127\.0\.0\.1:(\d+)", url)
        assert found is not None
        with pytest.raises(NoRedisError, match="asks for a password"):
            await connect(f"redis://127.0.0.1:{found[2]}", "r")
        bus = await connect(url, "r")
        await bus.redis.set(bus.key("x"), "1")
        # one whose machine is gone is noticed before the kernel would
        connection = bus.redis._wires._shared._transport.get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        process = psutil.Process(server.pid)
        listening = [one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"]
        assert found[1] not in " ".join(process.cmdline()) and found[1] not in str(process.environ())
        assert files_with(tmp_path, found[1]) == []
        # killed and started again: clients that know it find it, with what it had
        server.kill()
        server.wait()
        assert server.start() == url
        assert await bus.redis.get(bus.key("x")) == b"1"
        await bus.close()
    finally:
        server.stop()


def test_an_address_of_another_machine_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NoRedisError, match=r"redis cannot listen on 203\.0\.113\.7: Cannot assign"):
        RedisServer(tmp_path, listen=Address("203.0.113.7")).start()
