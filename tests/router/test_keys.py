"""Who holds one key opens what that key is for and nothing else: every key at every endpoint of every server of a run.

The endpoints are those that the applications have (and, for what the router passes on, the engines'). One of an engine that is
in no list of ``miles_async/router/access.py`` is not passed on.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec
import pytest
from fake_engines import FakeEngine, Receive, Send, respond, served
from fastapi import Response
from keys_at_endpoints import KEYS, METHODS, engine_routes, headers, routes, sglang_routes, statuses

from bus import Bus, run_key
from miles_async.config.schema import ConfigError, Data, Engine, Model, RunConfig
from miles_async.config.schema import Router as RouterConfig
from miles_async.config.secrets import check
from miles_async.engines.embedded import app as engine_app
from miles_async.engines.embedded.app import EngineApp
from miles_async.http.refusals import Refusals
from miles_async.rollout.sessions.server import SessionServer
from miles_async.router import addresses, kinds
from miles_async.router.access import CLIENTS, Access, Routes
from miles_async.router.app import RouterApp
from miles_async.router.keys import one_request


async def test_every_endpoint_of_the_router_opens_to_the_key_that_it_is_for_and_no_other(
    router: tuple[RouterApp, str, FakeEngine],
) -> None:
    app, url, engine = router
    own = app.pages.routes.own
    assert set(routes(app.pages.app)) == own.keys()
    engines = {*engine_routes(), *sglang_routes(), ("POST", "/of-a-later-version"), ("GET", "/")}
    for method, path in sorted({*own, *CLIENTS, *engines, *((m, p) for m in METHODS for _, p in own)}):
        if (method, path) == ("DELETE", "/workers/{name:path}"):
            continue  # below: it takes the engine away
        path = path.replace("{name:path}", "e")
        needs, by = app.pages.routes.find(method, path)
        engine.seen.clear()
        body = b'{"rid": "one"}' if path == "/abort_request" else b"{}"
        found = await statuses(url, method, path, body)
        passed = {key for key, status in found.items() if status not in (401, 403)}
        may = {"open": set(KEYS), "client": {"router", "admin"}, "control": {"admin"}}[needs]
        assert passed <= may, (method, path, found)
        if path != "/update_weights_from_disk":  # whose place is looked at, too
            assert passed == may, (method, path, found)
        for key in set(KEYS) - may:
            assert found[key] == (403 if key == "router" else 401), (method, path, key)
        passed_on = [target for target, _ in engine.seen if target.split()[1] == path]
        assert len(passed_on) <= (0 if by in ("router", "nobody") else len(may)), (method, path)
    assert list(app.engines) == ["e"]
    assert set(engine.brought) == {b"Bearer of-engines"}  # type: ignore[attr-defined]
    async with aiohttp.ClientSession() as session:
        for key in ("none", "engine", "wrong", "router"):
            async with session.delete(url + "/workers/e?now=true", headers=headers(key)) as answer:
                assert answer.status in (401, 403) and "e" in app.engines


def test_every_endpoint_of_an_engine_is_passed_on_and_nothing_else() -> None:
    known = {path.partition("{")[0] for _, path in {*engine_routes(), *sglang_routes()} if path != "/"}
    assert len(known) > 20
    answering = {path: Routes().find("POST", path).by for path in known}
    assert {path for path, by in answering.items() if by == "nobody"} <= {"/health"}
    assert Routes().find("POST", "/of-a-later-version").by == "nobody" == Routes().find("GET", "/").by


@pytest.mark.parametrize("needs", ["client", "control"])
async def test_a_page_that_is_added_is_never_passed_on_is_documented_and_asks_for_its_key(
    router: tuple[RouterApp, str, FakeEngine], needs: Access
) -> None:
    app, url, engine = router

    @app.pages.page("GET", "/new", needs)
    async def new() -> Response:
        return Response(b"of the router")

    for method in METHODS:
        for path in ("/new", "/new?x=1"):
            found = await statuses(url, method, path)
            of_router = 403 if needs == "control" or method != "GET" else 200
            of_admin = 200 if method == "GET" else 405
            assert found == {"none": 401, "router": of_router, "admin": of_admin, "engine": 401, "wrong": 401}
    async with (
        aiohttp.ClientSession(headers=headers("router")) as session,
        session.get(url + "/openapi.json") as answer,
    ):
        assert list((await answer.json())["paths"]["/new"]) == ["get"]
    assert not engine.seen
    assert await statuses(url, "GET", "/newer") == {
        "none": 401,
        "router": 403,
        "admin": 404,
        "engine": 401,
        "wrong": 401,
    }
    with pytest.raises(ValueError, match="forwarded"):
        app.pages.page("GET", "/generate", needs)


def test_what_changes_engines_or_shows_how_they_were_started_is_control() -> None:
    changing = {
        *((method, path) for method, path in engine_routes() if "weight" in path or "pause" in path or "cache" in path),
        ("POST", "/continue_generation"),
        ("GET", "/server_info"),
        ("GET", "/get_server_info"),
        ("POST", "/load_lora_adapter"),
        ("POST", "/set_internal_state"),
        ("GET", "/dump"),
    }
    assert len(changing) > 14
    find = Routes().find
    assert {find(*one).needs for one in changing} == {"control"}
    assert {find("POST", path).needs for path in ("/generate/", "//generate", "/Generate", "/v1/../flush_cache")} == {
        "control"
    }


def test_a_client_aborts_one_request_and_never_all() -> None:
    assert one_request(b'{"rid": "0-1-0.0"}') == b'{"rid":"0-1-0.0","abort_all":false}'
    for body in (b"", b"{}", b'{"rid": ""}', b'{"rid": "x", "abort_all": true}', b'{"rid": ["x"]}', b"[]", b"\xff"):
        assert one_request(body) is None, body
    twice = one_request(b'{"rid": "x", "rid": "", "abort_all": false}')
    assert twice is None or b'"rid":"x"' in twice  # what is passed on is what was looked at


async def test_an_abort_of_all_needs_the_key_for_control(router: tuple[RouterApp, str, FakeEngine]) -> None:
    _, url, engine = router
    found = await statuses(url, "POST", "/abort_request", b'{"abort_all": true}')
    assert found == {"none": 401, "router": 403, "admin": 200, "engine": 401, "wrong": 401}
    assert len(engine.seen) == 1


async def test_without_an_admin_key_only_the_runs_own_processes_control_and_only_from_this_machine(bus: Bus) -> None:
    secret = await run_key(bus)
    assert secret == await run_key(bus) and len(secret) > 20
    engine = FakeEngine("e")
    app = RouterApp(own_key=secret, wait_s=0.05)
    async with served(engine) as engine_url, served(app) as url, aiohttp.ClientSession() as session:
        app.add("e", engine_url, version=0)
        for key, expected in (("", 403), ("guess", 403), (secret, 200)):
            async with session.post(url + "/flush_cache", headers={"authorization": f"Bearer {key}"}) as answer:
                assert answer.status == expected
    scope = {"headers": [(b"authorization", f"Bearer {secret}".encode())], "client": ("10.0.0.7", 1)}
    assert app.keys.may(scope) == "client"
    assert (
        app.keys.may({**scope, "client": None}) == "client"
        and app.keys.may({**scope, "client": ("::1", 1)}) == "control"
    )
    await bus.forget_processes()
    assert await run_key(bus) != secret  # of a new launch


async def test_every_endpoint_of_an_engine_asks_for_its_key_but_those_that_tell_whether_it_lives() -> None:
    app = EngineApp.__new__(EngineApp)  # what is behind the keys is another test's
    app._key, app._refusals = KEYS["engine"], Refusals()
    passed: list[str] = []

    async def behind(scope: Any, receive: Receive, send: Send) -> None:
        passed.append(scope["path"])
        await respond(send, 200, b"{}")

    app._page = behind  # type: ignore[method-assign]
    app._generate = behind  # type: ignore[method-assign]
    async with served(app) as url:
        for method, path in [
            *engine_routes(),
            ("GET", "/healthx"),
            ("GET", "/readyx"),
            ("POST", "/of-a-later-version"),
        ]:
            found = await statuses(url, method, path)
            may = set(KEYS) if path in engine_app.OPEN else {"engine"}
            assert {key for key, status in found.items() if status == 200} == may, (method, path, found)
            assert {found[key] for key in set(KEYS) - may} <= {401}
    assert sorted(engine_app.OPEN) == ["/health", "/health_generate", "/ready"]


async def test_every_endpoint_of_the_sessions_asks_for_the_key_of_its_worker() -> None:
    server = SessionServer("m", lambda name, seed: None)  # type: ignore[arg-type,return-value]
    async with served(server) as url, aiohttp.ClientSession() as session:
        for method, path in [*routes(server._api), ("GET", "/of-a-later-version")]:
            found = await statuses(url, method, path.format(session_id="none"))
            assert set(found.values()) == {401}, (method, path, found)
        async with session.post(url + "/sessions", headers={"authorization": f"Bearer {server.api_key}"}) as answer:
            assert answer.status == 200


def test_keys_that_protect_nothing_are_refused_before_the_start() -> None:
    def config(**router: Any) -> RunConfig:
        return RunConfig(
            model=Model(hf_checkpoint="x"),
            data=Data(prompt_data="y"),
            router=RouterConfig(**router),
            engine=Engine(api_key="same"),
        )

    for key in ("api_key", "admin_key"):
        with pytest.raises(ConfigError, match=f"engine.api_key is the same as router.{key}"):
            check(config(**{key: "same"}))
    check(config(api_key="a", admin_key="b"))
    with pytest.raises(ConfigError, match=r'router\.admin_key needs router\.kind = "builtin"'):
        kinds.check(config(kind="sglang", admin_key="b"))
    with pytest.raises(ConfigError, match=r'router\.allowed_engines: "gpu-7" is no address: expected "HOST:PORT"'):
        addresses.check(msgspec.structs.replace(config(), router=RouterConfig(allowed_engines=["gpu-7"])))
