"""An engine, or a router of engines, spoken to over our own HTTP client: a third of the CPU, for who asks it all the time.

Promises: those of :class:`miles_async.engines.client.EngineClient`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from miles_async.engines.client import EngineClient
from miles_async.http.client import Upstream

_JSON = (b"content-type", b"application/json")


class LeanEngineClient(EngineClient):
    """Connections are its own, as many as it has requests under way, and kept: :meth:`close` it."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        name: str | None = None,
        vocab_size: int | None = None,
        context_length: int | None = None,
        batches: bool = True,
    ) -> None:
        no_session: Any = None
        super().__init__(
            url,
            no_session,
            api_key,
            name=name,
            vocab_size=vocab_size,
            context_length=context_length,
            batches=batches,
        )
        self._upstream = Upstream(url, api_key)

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        named = [_JSON, *((name.encode(), value.encode()) for name, value in headers.items())]
        content = b"" if body is None else _written(body)
        async with asyncio.timeout(timeout):
            return await self._upstream.ask(method.encode(), path.encode(), named, content)

    def close(self) -> None:
        """Break off what is under way."""
        self._upstream.close()


def _written(body: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError):  # halves of surrogate pairs, which Python's own escapes
        return json.dumps(body).encode()
