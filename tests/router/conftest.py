"""A router with keys in front of an engine that notes which keys it is brought."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_engines import FakeEngine, Receive, Send, respond, served
from keys_at_endpoints import KEYS

from miles_async.router.app import RouterApp


@pytest.fixture
async def router() -> AsyncIterator[tuple[RouterApp, str, FakeEngine]]:
    async def note(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        brought.append(dict(scope["headers"]).get(b"authorization"))
        await respond(send, 200, b"{}")

    brought: list[bytes | None] = []
    engine = FakeEngine("e", note)
    engine.brought = brought  # type: ignore[attr-defined]
    app = RouterApp(api_key=KEYS["router"], admin_key=KEYS["admin"], engine_key=KEYS["engine"], wait_s=0.05)
    async with served(engine) as engine_url, served(app) as url:
        app.add("e", engine_url, version=0)
        yield app, url, engine
