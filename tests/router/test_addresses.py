"""Where engines and weights may be: an engine's key goes to its address alone, and no weights come from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_engines import FakeEngine, Receive, Send, respond, served
from keys_at_endpoints import KEYS, headers

from miles_async.config.schema import Engine
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.kinds.table import kind_of
from miles_async.engines.weight_paths import inside
from miles_async.router.addresses import is_allowed, is_of_run, is_pattern
from miles_async.router.app import RouterApp


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
