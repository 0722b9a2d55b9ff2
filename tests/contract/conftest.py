"""One engine for the whole session, of the kind that ENGINE names, and two checkpoints to serve."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from contract.checkpoint import make_checkpoint
from contract.client import DEADLINE_S, Engine
from contract.synthetic import KEPT, synthetic_engine
from miles_async.engines.sglang import process_group
from miles_async.engines.sglang.command import bound_to
from miles_async.engines.sglang.driver import SglangServer, free_port

HERE = Path(__file__).parent
KINDS = ("embedded", "sglang")


def engine_kind() -> str:
    kind = os.environ.get("ENGINE", "embedded")
    if kind not in KINDS:
        raise pytest.UsageError(f"ENGINE={kind}: allowed are {', '.join(KINDS)}")
    return kind


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)  # one loop: one HTTP session
            if engine_kind() == "sglang":
                item.add_marker("sglang")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function.__name__ in KEPT and engine_kind() == "embedded":
        metafunc.parametrize("engine", ["embedded", "synthetic"], indirect=True)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("checkpoints")
    yield make_checkpoint(root / "a", seed=1), make_checkpoint(root / "b", seed=2)


@pytest.fixture(scope="session")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoints of experts."""
    root = tmp_path_factory.mktemp("mixtures")
    return make_checkpoint(root / "a", seed=1, mixture=True), make_checkpoint(root / "b", seed=2, mixture=True)


@asynccontextmanager
async def embedded_server(model: Path, log_file: Path) -> AsyncIterator[str]:
    """The embedded engine's server process; its URL once it answers."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    words = (
        f"{sys.executable} -m miles_async.engines.embedded.server --host 127.0.0.1 --port {port} "
        "--weight-version 0 --weight-roots / --model-path"
    )
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *bound_to(os.getpid(), [*words.split(), str(model)]), stdout=log, stderr=log, start_new_session=True
        )
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE_S):
            while not await _healthy(session, url):
                assert process.returncode is None, f"the embedded engine exited:\n{_tail(log_file)}"
                await asyncio.sleep(0.1)
        yield url
    finally:
        await process_group.end(process.pid, 0, 10)
        await process.wait()


def _tail(log_file: Path) -> str:
    return log_file.read_text(errors="replace")[-3000:]


async def _healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url + "/health") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@asynccontextmanager
async def sglang_server(model: Path, log_file: Path, *, routes: bool = False) -> AsyncIterator[str]:
    server = await SglangServer.start(
        str(model), log_file=log_file, device="cpu", max_running_requests=64, routes=routes
    )
    try:
        yield server.url
    finally:
        await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running(checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    kind = engine_kind()
    serve = sglang_server if kind == "sglang" else embedded_server
    log_file = tmp_path_factory.mktemp("server") / "log.txt"
    async with serve(checkpoints[0], log_file) as url, aiohttp.ClientSession() as session:
        yield Engine(kind, url, *checkpoints, session)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mixture_engine(
    mixtures: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Engine]:
    """One that serves a mixture and can return its experts."""
    log_file = tmp_path_factory.mktemp("mixture_server") / "log.txt"
    serve = functools.partial(sglang_server, routes=True) if engine_kind() == "sglang" else embedded_server
    async with serve(mixtures[0], log_file) as url, aiohttp.ClientSession() as session:
        yield Engine(engine_kind(), url, *mixtures, session)


@pytest_asyncio.fixture(loop_scope="session")
async def engine(running: Engine, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """The session's engine, idle and with the weights it was started with; or a synthetic one."""
    if getattr(request, "param", "") == "synthetic":
        async with synthetic_engine() as synthetic:
            yield synthetic
        return
    yield running
    await running.ok("/abort_request", abort_all=True)
    await running.ok("/continue_generation")
    await running.post("/end_weight_update")  # 400 where no update was left open
    if await running.weight_version() != Engine.VERSION:
        await running.ok("/update_weights_from_disk", model_path=str(running.model), weight_version=Engine.VERSION)
