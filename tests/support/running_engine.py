"""An engine's server in this process, and a client for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
from engine_support import CONTEXT

from miles_async.engines.embedded.server import serve

DEADLINE_S = 30.0


class Running:
    """A server in this process, and a client for it."""

    def __init__(self, url: str, session: aiohttp.ClientSession, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.url, self.session, self.stop, self.task = url, session, stop, task

    async def call(self, path: str, body: Any = None, method: str = "POST", **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        async with self.session.request(method, self.url + path, data=data, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text[:1] in ("{", "[") else text

    async def generate(self, **body: Any) -> Any:
        status, answer = await self.call("/generate", {"input_ids": [1, 2, 3], **body})
        assert status == 200, answer
        return answer

    async def load(self) -> dict[str, int]:
        return (await self.call("/v1/loads", method="GET"))[1]["loads"][0]

    async def until(self, **wanted: int) -> None:
        """Returns when the engine's load is as wanted."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                load = await self.load()
                if all(load[name] == value for name, value in wanted.items()):
                    return


async def start(directory: Path, session: aiohttp.ClientSession, **options: Any) -> Running:
    stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
    options = {"weight_roots": [Path("/")]} | options  # the tests' own directories are anywhere
    task = asyncio.create_task(serve(str(directory), device="cpu", on_ready=url.set_result, stop=stop, **options))
    await asyncio.wait({task, url}, return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_S)
    if task.done():
        task.result()
    return Running(url.result(), session, stop, task)


LONG = {"max_new_tokens": CONTEXT - 10}
