"""Two checkpoints, and a server with the first of them in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from engine_support import make_checkpoint
from running_engine import DEADLINE_S, Running, start


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("a"), words=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("b"), seed=1)


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[Running]:
    async with aiohttp.ClientSession() as session:
        running = await start(checkpoint, session, weight_version="0")
        yield running
        running.stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await running.task
