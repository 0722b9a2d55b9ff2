"""Router and embedded engine under malformed requests: refused with a 4xx, counted, and nobody dies of one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from engine_support import make_checkpoint
from fake_engines import FakeEngine, served
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lib.fuzz_http import NOT_HTTP, OPEN, Client, HttpFuzz, Target
from miles_async.engines.embedded.protocol import expand, parse
from miles_async.engines.embedded.sampling_params import RequestError, RequestLimits
from miles_async.engines.embedded.server import serve
from miles_async.http.limits import MAX_HEAD_BYTES
from miles_async.http.refusals import Refusals
from miles_async.router.app import RouterApp

KEY, ENGINE_KEY = "router-key", "engine-key"
REQUESTS = 2000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("fuzzed"), words=True)


class Pair:
    """A router with one engine behind it, both with a key of their own."""

    def __init__(self, app: RouterApp, router: str, engine: str, refused: Refusals) -> None:
        self.app, self.engine_refused = app, refused
        self.urls: dict[Target, str] = {"router": router, "engine": engine}
        self.keys: dict[Target, str] = {"router": KEY, "engine": ENGINE_KEY}

    def refused(self) -> int:
        return self.app.refusals.total() + self.engine_refused.total()

    async def serves(self) -> None:
        """Both answer a good request."""
        async with aiohttp.ClientSession() as session:
            for target in self.urls:
                body = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 3}}
                headers = {"authorization": f"Bearer {self.keys[target]}"}
                async with session.post(self.urls[target] + "/generate", json=body, headers=headers) as answer:
                    assert answer.status == 200, await answer.text()
                    assert len((await answer.json())["output_ids"]) == 3


@contextlib.asynccontextmanager
async def pair(checkpoint: Path, **options: Any) -> AsyncIterator[Pair]:
    stop, ready, refused = asyncio.Event(), asyncio.get_running_loop().create_future(), Refusals()
    engine = asyncio.create_task(
        serve(str(checkpoint), device="cpu", on_ready=ready.set_result, stop=stop, api_key=ENGINE_KEY, refusals=refused)
    )
    app = RouterApp(api_key="of-clients", admin_key=KEY, engine_key=ENGINE_KEY, **options)
    url = await asyncio.wait_for(ready, 30)
    app.add("e", url, version=0)
    async with served(app) as router:
        yield Pair(app, router, url, refused)
    stop.set()
    await asyncio.wait_for(engine, 30)


@pytest.mark.parametrize("target", ["router", "engine"])
async def test_every_malformed_request_is_a_counted_4xx_and_a_good_one_is_answered_after(
    checkpoint: Path, target: Target
) -> None:
    async with pair(checkpoint) as servers:
        fuzz, client, statuses = HttpFuzz(1, servers.keys[target]), Client(servers.urls[target]), Counter[int]()
        for _ in range(REQUESTS):
            request = fuzz.request(target)
            status = await client.send(request)
            # 0: the connection was closed before the answer to what was still being sent could be read
            assert status == 0 or 400 <= status < 500, (status, request[:300])
            statuses[status] += 1
        await client.close()
        assert {400, 401, 404, 405, 413} <= set(statuses), statuses
        assert statuses[0] < REQUESTS / 20, statuses
        assert servers.refused() >= REQUESTS - statuses[0]
        await servers.serves()


async def test_what_is_no_http_is_answered_with_400_or_closed(checkpoint: Path) -> None:
    async with pair(checkpoint) as servers:
        for url in servers.urls.values():
            for raw in NOT_HTTP:
                client = Client(url)
                assert await client.send(raw + b"\r\n\r\n") in (0, 400, 401, 404, 431), raw
                await client.close()
        await servers.serves()


async def test_a_connection_that_breaks_off_anywhere_harms_nobody(checkpoint: Path) -> None:
    async with pair(checkpoint) as servers:
        fuzz = HttpFuzz(2, KEY)
        for number in range(200):
            url = servers.urls["router" if number % 2 else "engine"]
            request = fuzz.request("engine")
            _, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
            writer.write(request[: fuzz.rng.randrange(len(request))])
            if number % 3:
                await writer.drain()
            writer.close()
        await servers.serves()


async def test_a_body_or_head_that_is_too_long_is_refused_before_it_is_held(checkpoint: Path) -> None:
    async with pair(checkpoint, max_body_bytes=1000) as servers:
        host, port = servers.urls["router"].removeprefix("http://").split(":")
        auth = b"authorization: Bearer router-key\r\n"
        for path in (b"/generate", b"/workers", b"/abort_request"):
            # announced; or sent in chunks without saying how much
            announced = b"POST " + path + b" HTTP/1.1\r\n" + auth + b"content-length: 1001\r\n\r\n"
            chunked = b"POST " + path + b" HTTP/1.1\r\n" + auth + b"transfer-encoding: chunked\r\n\r\n"
            chunked += b"".join(b"100\r\n" + b"x" * 256 + b"\r\n" for _ in range(5))
            for request in (announced, chunked):
                client = Client(servers.urls["router"])
                assert await client.send(request) == 413, (path, request)
                await client.close()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /workers HTTP/1.1\r\nx: ")
        sent = 0
        with contextlib.suppress(OSError):
            while not reader.at_eof() and sent < 100 * MAX_HEAD_BYTES:
                writer.write(b"y" * 4096)
                await writer.drain()
                sent += 4096
                await asyncio.sleep(0)
        assert sent < 100 * MAX_HEAD_BYTES
        writer.close()
        assert servers.app.refusals["431"] == 1
        await servers.serves()


async def test_the_routers_key_opens_the_router_and_never_reaches_an_engine() -> None:
    seen: list[bytes] = []

    async def note(engine: FakeEngine, scope: Any, body: bytes, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]).get(b"authorization", b""))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    app = RouterApp(api_key=KEY, engine_key=ENGINE_KEY)
    async with served(FakeEngine("e", note)) as engine, served(app) as url, aiohttp.ClientSession() as session:
        app.add("e", engine, version=0)
        for path in ("/generate", "/workers", "/metrics", "/abort_request", "/healthy"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
                async with session.post(url + path, json={}, headers=headers) as answer:
                    assert answer.status == 401
                    assert "key" in json.loads(await answer.read())["error"]["message"]
        assert seen == []
        async with session.get(url + "/health") as answer:
            assert answer.status == 200
        for path in ("/generate", "/abort_request"):
            async with session.post(
                url + path, json={"rid": "r"}, headers={"authorization": f"Bearer {KEY}"}
            ) as answer:
                assert answer.status == 200
        assert seen == [f"Bearer {ENGINE_KEY}".encode()] * 2
        async with session.get(url + "/metrics", headers={"authorization": f"Bearer {KEY}"}) as answer:
            assert 'router_refused_total{status="401"} 15.0' in await answer.text()


async def test_without_an_engine_key_an_engine_gets_no_key_at_all() -> None:
    engine = FakeEngine("e")
    app = RouterApp(api_key=KEY)
    async with served(engine) as engine_url, served(app) as url, aiohttp.ClientSession() as session:
        seen: list[Any] = []

        async def note(engine: FakeEngine, scope: Any, body: bytes, receive: Any, send: Any) -> None:
            seen.append(dict(scope["headers"]))
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        engine.handler = note
        app.add("e", engine_url, version=0)
        async with session.post(url + "/generate", headers={"authorization": f"Bearer {KEY}"}) as answer:
            assert answer.status == 200
        assert b"authorization" not in seen[0]


async def test_health_pages_are_open(checkpoint: Path) -> None:
    async with pair(checkpoint) as servers, aiohttp.ClientSession() as session:
        for path in OPEN:
            async with session.get(servers.urls["engine"] + path) as answer:
                assert answer.status == 200


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["text", "input_ids", "rid", "sampling_params", "stream", "return_logprob", "logprob_start_len"]
)
params = st.sampled_from(
    ["temperature", "top_p", "top_k", "n", "stop", "stop_token_ids", "sampling_seed", "logit_bias"]
)
bodies = st.dictionaries(names, values | st.dictionaries(params, values, max_size=3), max_size=4)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200) | bodies.map(lambda body: json.dumps(body).encode()))
def test_a_generate_body_is_a_list_of_items_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        request = parse(data)
        assert all(isinstance(prompt, list | str) for prompt in request.prompts)
        if request.body.text is None:
            expand(request, request.prompts, RequestLimits(96, 512, True), lambda: "r")  # type: ignore[arg-type]
