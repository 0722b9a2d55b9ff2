"""The router's own pages, as programs use them that speak ours or Miles', and the limit on how much it takes at once."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from typing import Any

import pytest
from fake_engines import FakeEngine, Held, Receive, Send, arrive, ask, fleet, free_port, respond, served

pytestmark = pytest.mark.usefixtures("with_and_without_connections")


async def test_workers_join_are_listed_shown_and_leave() -> None:
    a = FakeEngine("a")
    async with fleet(a) as (app, url, urls, session):
        app.remove("a")
        async with session.post(url + "/workers", json={"url": urls[0], "version": 2}) as answer:
            assert answer.status == 201
            view = await answer.json()
        name = urls[0].removeprefix("http://")
        assert view == {"id": name, "url": urls[0], "version": 2, "state": "up", "trouble": "", "inflight": 0}
        async with session.get(url + "/workers") as answer:
            assert await answer.json() == {"workers": [view]}
        async with session.get(f"{url}/workers/{name}") as answer:
            assert await answer.json() == view
        async with session.delete(f"{url}/workers/{name}") as answer:
            assert answer.status == 200 and await answer.json() == {"removed": True, "id": name, "inflight": 0}
        for method in ("GET", "DELETE"):
            async with session.request(method, f"{url}/workers/{name}") as answer:
                assert answer.status == 404 and "known: none" in (await answer.json())["detail"]


async def test_the_pages_of_miles_take_a_url_in_the_query_or_the_body_and_answer_in_its_forms() -> None:
    a, b = Held("a"), FakeEngine("b")
    async with fleet(a, b) as (app, url, urls, session):
        for name in ("a", "b"):
            app.remove(name)
        async with session.post(url + "/add_worker", params={"url": urls[0]}) as answer:
            assert await answer.json() == {"status": "success", "worker_urls": {urls[0]: 0}}
        for key in ("url", "worker_url"):
            async with session.post(url + "/add_worker", json={key: urls[1] + "/"}) as answer:
                assert await answer.json() == {"status": "success", "worker_urls": {urls[0]: 0, urls[1]: 0}}
        async with session.get(url + "/list_workers") as answer:
            assert await answer.json() == {"urls": urls}
        app.set_updating(urls[1].removeprefix("http://"), True)
        asking = asyncio.create_task(ask(session, url))
        await arrive(a)
        async with session.post(url + "/remove_worker", json={"url": urls[0]}) as answer:
            assert await answer.json() == {"status": "success", "worker_urls": {urls[0]: 1, urls[1]: 0}}
        async with session.post(url + "/add_worker", json={"url": urls[0]}) as answer:
            assert answer.status == 409 and "drains" in (await answer.json())["error"]
        a.gate.set()
        assert await asking == (200, b"a:x")
        async with session.post(url + "/remove_worker?url=http://nobody:1") as answer:
            assert await answer.json() == {"status": "success", "worker_urls": {urls[1]: 0}}
        for body in (b"", b"{}", b"[1]", b"[" * 9000, b'{"url": 5}', b'{"url": "ftp://x"}'):
            async with session.post(url + "/add_worker", data=body) as answer:
                assert answer.status == 400 and (await answer.json())["error"]


async def test_a_worker_that_was_given_up_returns_when_it_is_added_again() -> None:
    async with fleet(FakeEngine("a")) as (app, url, urls, session):
        app.mark_dead(app.engines["a"], "a test")
        async with session.post(url + "/add_worker", json={"url": urls[0]}) as answer:
            assert answer.status == 200
        assert app.engines["a"].state == "up"
        assert await ask(session, url) == (200, b"a:x")


async def test_a_router_that_is_full_says_when_to_come_back_and_still_takes_aborts() -> None:
    engine = Held("a")
    async with fleet(engine, max_concurrency=2) as (app, url, _, session):
        asking = [asyncio.create_task(ask(session, url)) for _ in range(2)]
        await arrive(engine, 2)
        async with session.post(url + "/generate", data=b"x" * 100_000) as answer:
            assert answer.status == 429 and int(answer.headers["retry-after"]) >= 1
            assert "2 requests" in (await answer.json())["error"]["message"]
        async with session.post(url + "/abort_request", json={"rid": "r"}) as answer:
            assert answer.status == 200
        async with session.get(url + "/metrics") as answer:
            text = await answer.text()
        assert "router_concurrency 2.0" in text and 'router_refused_total{status="429"} 1.0' in text
        engine.gate.set()
        assert [await one for one in asking] == [(200, b"a:x")] * 2
        assert app.concurrency == 0
        assert await ask(session, url) == (200, b"a:x")


async def test_a_client_that_leaves_while_it_waits_for_an_engine_frees_its_place_at_once() -> None:
    engine = FakeEngine("late")
    async with fleet(wait_s=60.0, max_concurrency=8) as (app, url, _, session):
        waiting = [asyncio.create_task(ask(session, url)) for _ in range(8)]
        async with asyncio.timeout(10):
            while app.concurrency < 8:
                (await session.get(url + "/workers")).close()
            for one in waiting[1:]:
                one.cancel()
            while app.concurrency > 1:
                (await session.get(url + "/workers")).close()
            async with served(engine) as engine_url:
                app.add("late", engine_url)
                assert await waiting[0] == (200, b"late:x")
    assert len(engine.seen) == 1


async def test_those_that_wait_for_an_engine_count_and_every_end_frees_its_place() -> None:
    async with fleet(max_concurrency=1, wait_s=0.5) as (app, url, _, session):
        waiting = asyncio.create_task(ask(session, url))
        async with asyncio.timeout(10):
            while not app.concurrency:
                (await session.get(url + "/workers")).close()
        assert (await ask(session, url))[0] == 429
        app.request_timeout_s = 0.05
        app.add("gone", f"http://127.0.0.1:{free_port()}")
        async with asyncio.timeout(10):
            status, _ = await waiting
            assert status in (502, 503)
            assert (await ask(session, url))[0] in (503, 504)
        assert app.concurrency == 0


def routed_answer() -> bytes:
    """An answer that a router which parses it would not give back unchanged."""
    experts = base64.b64encode(random.Random(1).randbytes(200_000)).decode()
    meta = f'{{"routed_experts": "{experts}", "indexer_topk": null, "of_tomorrow": {{"a": [1e400]}}}}'
    return f'{{"text":  "\\u00e9\\/\\ud83d", "output_ids": [1],\n "meta_info": {meta}, "a": 1, "a": 2 }} '.encode()


@pytest.mark.parametrize("chunked", [False, True])
async def test_routed_experts_and_every_field_of_meta_info_pass_untouched(chunked: bool) -> None:
    content = routed_answer()

    async def answer(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        if not chunked:
            return await respond(send, 200, content, [(b"content-type", b"application/json")])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for start in range(0, len(content), 7001):
            part = {"type": "http.response.body", "body": content[start : start + 7001], "more_body": True}
            await send(part)
        await send({"type": "http.response.body", "body": b""})

    async with fleet(FakeEngine("a", answer)) as (_, url, _, session):
        for headers in ({}, {"x-min-weight-version": "0"}):
            async with session.post(url + "/generate", data=b"x", headers=headers) as got:
                assert got.status == 200 and await got.read() == content


async def test_only_what_engines_have_is_passed_on() -> None:
    engine = FakeEngine("a")
    async with fleet(engine) as (_, url, _, session):
        for path, status in (("/health_generate", 200), ("/workersx", 404), ("/metricsx", 404), ("/v1/models", 200)):
            async with session.get(url + path) as answer:
                assert answer.status == status
                assert status == 200 or "is no page" in (await answer.json())["error"]["message"]
        async with session.get(url + "/openapi.json") as answer:
            paths = json.loads(await answer.read())["paths"]
    assert [target for target, _ in engine.seen] == ["GET /health_generate", "GET /v1/models"]
    assert {"/workers", "/workers/{name}", "/add_worker", "/list_workers", "/remove_worker", "/generate"} <= set(paths)


async def test_every_page_asks_for_the_key_but_health() -> None:
    async with fleet(FakeEngine("a"), api_key="secret") as (_, url, _, session):
        async with session.get(url + "/openapi.json", headers={"authorization": "Bearer secret"}) as answer:
            paths: dict[str, dict[str, Any]] = (await answer.json())["paths"]
        for path, operations in paths.items():
            for method in operations:
                expected = 200 if path == "/health" else 401
                async with session.request(method, url + path.format(name="a")) as answer:
                    assert answer.status == expected, path
