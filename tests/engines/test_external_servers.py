"""Servers that a run needs and does not start: who is not there is named before the start, who goes away is waited for."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from actor_contexts import worker

from actors.runtime.placement.local import LocalPlacement
from actors.runtime.supervisor import Supervisor
from bus import Bus
from bus.codec import LOGPROBS, MASK, TOKENS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.config.schema import Algorithm, ConfigError, Data, Engine, Model, Rollout, RunConfig
from miles_async.engines import absent
from miles_async.engines.absent import refuse_absent
from miles_async.engines.client import EngineClient
from miles_async.http.limits import read_body, send_whole
from miles_async.http.refusals import Refusals
from miles_async.http.server import HttpServer
from miles_async.monitor import Monitor
from miles_async.rollout import teacher as teaching
from miles_async.rollout.teacher import TeacherGoneError, Teachers

TICKET = Ticket(group_id="0-0-0", prompt_tokens=pack([3, 4], TOKENS), sampling_seed=1)
SAMPLE = Sample(
    index=0,
    tokens=pack([5, 6], TOKENS),
    logprobs=pack(np.zeros(2), LOGPROBS),
    loss_mask=pack(np.ones(2), MASK),
    versions=bytes(8),
    reward=0.0,
    finish_reason="stop",
)


def config(port: int, teacher: int) -> RunConfig:
    return RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        engine=Engine(kind="external", urls=[f"http://127.0.0.1:{port}"]),
        rollout=Rollout(opd_teacher_urls={"math": f"http://127.0.0.1:{teacher}"}),
        algorithm=Algorithm(use_opd=True),
    )


@pytest.fixture
def free_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    yield port


async def test_an_engine_or_a_teacher_that_is_not_there_is_named_before_anything_starts(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absent, "ABSENT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = listener.getsockname()[1]
        await refuse_absent(config(there, there))
        words = (
            rf"nobody listens at rollout.opd_teacher_urls.math = http://127.0.0.1:{free_port} \(.*refused.*\): start"
        )
        with pytest.raises(ConfigError, match=words):
            await refuse_absent(config(there, free_port))
        with pytest.raises(ConfigError, match=rf"engine.urls = http://127.0.0.1:{free_port}"):
            await refuse_absent(config(free_port, there))


async def test_a_server_that_begins_to_listen_a_little_later_is_there(free_port: int) -> None:
    looking = asyncio.create_task(refuse_absent(config(free_port, free_port)))
    await asyncio.sleep(0)
    with socket.create_server(("127.0.0.1", free_port)):
        await looking


def test_a_launch_whose_engine_is_not_there_starts_nothing(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absent, "ABSENT_S", 0.0)
    mask = os.umask(0o022)
    try:
        with pytest.raises(ConfigError, match=r"nobody listens at engine\.urls"):
            Supervisor(config(free_port, free_port), tmp_path / "run", Monitor(), LocalPlacement()).run()
    finally:
        os.umask(mask)
    assert not (tmp_path / "run" / "redis").exists() and not (tmp_path / "run" / "events.jsonl").exists()


@asynccontextmanager
async def teacher_at(port: int) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        ids = json.loads(await read_body(receive) or b"")["input_ids"]
        scored = {"meta_info": {"input_token_logprobs": [[-0.5, token, None] for token in ids]}}
        await send_whole(send, 200, [(b"content-type", b"application/json")], json.dumps(scored).encode())

    server = HttpServer(app, Refusals(), timeout_keep_alive=5)
    with socket.create_server(("127.0.0.1", port)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield
        server.should_exit = server.force_exit = True
        await task


async def test_a_teacher_that_goes_away_is_waited_for_and_costs_no_attempt(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "AGAIN_S", 0.02)
    told: list[str] = []
    down = asyncio.Event()

    async def tell(kind: str, **data: Any) -> None:
        told.append(f"{kind} {data['teacher']} {data['url']}")
        down.set()

    url = f"http://127.0.0.1:{free_port}"
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        teachers = Teachers({"default": EngineClient(url, session, name="default")}, 30.0, tell)
        asked = asyncio.create_task(teachers.teach(TICKET, [SAMPLE, msgspec.structs.replace(SAMPLE, index=1)]))
        await down.wait()
        async with teacher_at(free_port):
            taught = await asked
    assert [unpack(sample.teacher_logprobs, LOGPROBS).tolist() for sample in taught] == [[-0.5, -0.5]] * 2
    assert told == [f"teacher_down default {url}", f"teacher_up default {url}"]


async def test_a_teacher_that_stays_away_ends_the_run_with_its_name_and_no_group(
    bus: Bus, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = worker(bus, monkeypatch)
    failed: list[Any] = []

    async def make(ticket: Ticket, context: Any) -> list[Sample]:
        return [SAMPLE]

    async def fail(*args: Any) -> None:
        failed.append(args)

    monkeypatch.setattr(rollout, "make", make)
    monkeypatch.setattr(rollout, "_fail", fail)
    async with aiohttp.ClientSession() as session:
        client = EngineClient(f"http://127.0.0.1:{free_port}", session, name="default")
        rollout.teachers = Teachers({"default": client}, 0.2)
        with pytest.raises(TeacherGoneError, match=rf'the teacher "default" at http://127.0.0.1:{free_port} has given'):
            await rollout._rollout(TICKET, SimpleNamespace(slots=None))  # type: ignore[arg-type]
    assert not failed
