"""Who holds one key opens what that key is for and nothing else: every key at every endpoint of every server of a run.

The endpoints are those that the applications have (and, for what the router passes on, the engines'). One of an engine that is
in no list of ``miles_async/router/access.py`` is not passed on.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from fake_engines import FakeEngine, Receive, Send, respond, served
from fastapi import FastAPI, Response
from fastapi.routing import APIRoute

from bus import Bus, run_key
from miles_async.config.rules import check_router_access
from miles_async.config.schema import ConfigError, Data, Engine, Model, RunConfig
from miles_async.config.schema import Router as RouterConfig
from miles_async.config.secrets import check
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.embedded import app as engine_app
from miles_async.engines.embedded.app import EngineApp, build_admin
from miles_async.engines.kinds.table import kind_of
from miles_async.engines.weight_paths import inside
from miles_async.http.refusals import Refusals
from miles_async.rollout.sessions.server import SessionServer
from miles_async.router import addresses
from miles_async.router.access import CLIENTS, Access, Routes
from miles_async.router.addresses import is_allowed, is_of_run, is_pattern
from miles_async.router.app import RouterApp
from miles_async.router.keys import one_request

KEYS = {"none": "", "router": "of-clients", "admin": "of-control", "engine": "of-engines", "wrong": "of-nobody"}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")


def headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[key]}"} if KEYS[key] else {}


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every endpoint of an application."""
    found = [(method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods]
    assert len(found) > 4
    return sorted(found)


def engine_routes() -> list[tuple[str, str]]:
    # only its list of endpoints is looked at: nothing behind it is called
    nothing: Any = type("Nothing", (), {"compute": type("Compute", (), {"scheduler": None})})
    return [
        *routes(build_admin(nothing, nothing, nothing, {}, Refusals())),
        ("POST", "/generate"),
        ("PUT", "/generate"),
    ]


def sglang_routes() -> list[tuple[str, str]]:
    """Of the installed SGLang server, as its source has them; importing it would take a minute."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return []
    source = Path(spec.submodule_search_locations[0]) / "srt" / "entrypoints" / "http_server.py"
    found = []
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("app."):
            continue
        how = ast.unparse(node.func).removeprefix("app.")
        if not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        listed = next((key.value for key in node.keywords if key.arg == "methods"), None)
        methods = ast.literal_eval(listed) if listed is not None else [how.upper()]
        found += [(method, str(node.args[0].value)) for method in methods if method in METHODS]
    assert len(found) > 50
    return found


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


async def statuses(url: str, method: str, path: str, body: bytes = b"{}") -> dict[str, int]:
    found = {}
    async with aiohttp.ClientSession() as session:
        for key in KEYS:
            async with session.request(method, url + path, data=body, headers=headers(key)) as answer:
                found[key] = answer.status
    return found


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


async def test_engines_are_added_only_where_an_administrator_lets_them_be_and_never_get_the_runs_key(
    router: tuple[RouterApp, str, FakeEngine],
) -> None:
    app, url, _ = router
    other = FakeEngine("other")
    brought: list[Any] = []

    async def note(_: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        brought.append(dict(scope["headers"]).get(b"authorization"))
        await respond(send, 200, b"{}")

    other.handler = note
    async with served(other) as other_url, aiohttp.ClientSession(headers=headers("admin")) as session:
        asked = (("/workers", {"json": {"url": other_url}}), ("/add_worker", {"params": {"url": other_url}}))
        for path, how in asked:
            async with session.post(url + path, **how) as answer:
                assert answer.status == 403 and "router.allowed_engines" in await answer.text()
        assert list(app.engines) == ["e"] and not brought
        async with session.post(url + "/workers", json={"url": other_url, "id": "e"}) as answer:
            assert answer.status == 409  # nobody takes the place of one of the run's
        app.allowed_engines = ("127.0.0.1:*",)
        for body, expected in (({}, None), ({"api_key": "its-own"}, b"Bearer its-own")):
            async with session.post(url + "/workers", json={"url": other_url, "id": "o", **body}) as answer:
                assert answer.status == 201
            app.set_updating("e", True)
            async with session.post(url + "/generate", json={}) as answer:
                assert answer.status == 200
            assert brought.pop() == expected
            app.remove("o")
        assert b"of-engines" not in b"".join(one for one in brought if one)


async def test_an_engines_key_does_not_follow_it_to_another_address() -> None:
    thief, seen = FakeEngine("thief"), []

    async def redirect(_: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        await respond(send, 307, b"", [(b"location", thief_url.encode() + b"/model_info")])

    async with served(thief) as thief_url, served(FakeEngine("e", redirect)) as url, aiohttp.ClientSession() as session:
        with pytest.raises(EngineError, match="HTTP 307"):
            await EngineClient(url, session, KEYS["engine"]).model_info()
    assert seen == ["/model_info"] and thief.seen == []


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

    app._admin = behind  # type: ignore[assignment]
    app._generate = lambda receive, send: behind({"path": "/generate"}, receive, send)  # type: ignore[assignment,method-assign]
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


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("10.0.0.7:30000", ["http://10.0.0.7:30000"], ["http://10.0.0.7:30001", "http://10.0.0.70:30000"]),
        ("10.0.*.7:*", ["http://10.0.3.7:1"], ["http://10.0.3.7.evil.example:1", "http://10.0.1.2.7:1"]),
        ("10.1.0.0/16:80", ["http://10.1.2.3"], ["http://10.2.0.1", "http://10.1.2.3:81", "http://x.example:80"]),
        ("*.cluster:*", ["http://gpu-7.cluster:5"], ["http://cluster:5", "http://a.b.cluster:5", "http://evil.x:1"]),
        ("[::1]:*", ["http://[::1]:5"], ["http://[::2]:5", "https://[::1]:5", "http://u:p@[::1]:5"]),
    ],
)
def test_a_pattern_names_the_addresses_that_it_looks_like(pattern: str, yes: list[str], no: list[str]) -> None:
    assert is_pattern(pattern) and not is_pattern("nowhere") and not is_pattern("h:99999") and not is_pattern("1/2:3")
    assert all(is_allowed(url, [pattern]) for url in yes)
    assert not any(is_allowed(url, [pattern]) for url in no) and not is_allowed(yes[0], [])


def test_an_engine_of_the_run_is_where_the_configuration_lets_it_be() -> None:
    configured = Engine(), Engine(kind="external", urls=["http://a:1/", "http://b:2"])
    ours, theirs = (kind_of(engine).addresses(engine) for engine in configured)
    assert is_of_run("http://127.0.0.1:4000", ours) and is_of_run("http://[::1]:4000", ours)
    assert not is_of_run("http://10.0.0.1:4000", ours) and not is_of_run("http://127.0.0.1.evil.example:1", ours)
    assert is_of_run("http://a:1", theirs) and not is_of_run("http://127.0.0.1:4000", theirs)


def test_weights_lie_in_the_runs_directories_whatever_links_say(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for directory in (run / "good", run / "linked-file", elsewhere):
        directory.mkdir(parents=True)
        (directory / "config.json").touch()
    (elsewhere / "model.safetensors").touch()
    (run / "linked").symlink_to(elsewhere)
    (run / "linked-file" / "model.safetensors").symlink_to(elsewhere / "model.safetensors")
    assert inside(run / "good", [run]) == (run / "good").resolve()
    for place in ("linked", "linked-file", "../elsewhere", "good/../../elsewhere", "nowhere"):
        assert inside(run / place, [run]) is None, place
    assert inside("\0", [run]) is None


async def test_the_router_passes_on_no_weights_from_elsewhere_not_even_for_an_administrator(
    router: tuple[RouterApp, str, FakeEngine], tmp_path: Path
) -> None:
    app, url, engine = router
    (tmp_path / "run" / "v1").mkdir(parents=True)
    app.weight_roots = (tmp_path / "run",)
    async with aiohttp.ClientSession(headers=headers("admin")) as session:
        for place, expected in ((tmp_path / "run" / "v1", 200), (tmp_path, 403), ("/etc", 403)):
            body = {"model_path": str(place), "weight_version": "9"}
            async with session.post(url + "/update_weights_from_disk", json=body) as answer:
                assert answer.status == expected
    assert len(engine.seen) == 1


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
        check_router_access(config(kind="sglang", admin_key="b"))
    with pytest.raises(ConfigError, match=r'router\.allowed_engines: "gpu-7" is no address: expected "HOST:PORT"'):
        addresses.check(msgspec.structs.replace(config(), router=RouterConfig(allowed_engines=["gpu-7"])))
