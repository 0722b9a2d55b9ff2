"""The pages by HTTP: what each answers, what is refused, and that nothing secret or foreign is in an answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from web_runs import group, made_run, record_step, sample

from miles_async.config.schema import ConfigError
from miles_async.web.access import is_local
from miles_async.web.app import STATIC, application
from miles_async.web.places import Places
from miles_async.web.serve import checked

KEY = "correct horse"


def client(root: Path, key: str | None = None, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application(Places(root), key))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8686", **options)


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    run = made_run(tmp_path / "runs" / "one", steps=4, config='[router]\napi_key = "sesame"\n')
    record_step(run, 1, group("0-1-0", sample(0, [5], [0], text="<script>alert(1)</script>")))
    made_run(tmp_path / "runs" / "two", steps=6, finished=True, config='[bus]\nurl = "redis://:sesame@h/0"\n')
    made_run(tmp_path / "elsewhere")
    async with client(tmp_path / "runs") as found:
        yield found


async def test_each_page_answers_with_what_a_run_has_left(web: httpx.AsyncClient) -> None:
    runs = (await web.get("/api/runs")).json()
    assert {row["run"] for row in runs["runs"]} == {"one", "two"} and not runs["alone"]
    curves = (await web.get("/api/runs/one/curves", params={"curve": ["raw_reward", "nothing"], "most": 2})).json()
    assert curves["step"] == 4 and curves["curves"]["raw_reward"][0] == [2, 4] and curves["curves"]["nothing"][0] == []
    assert (await web.get("/api/runs/one/state")).json()["state"] == "dead"
    assert (await web.get("/api/runs/one/samples", params={"sort": "reward"})).json()["found"] == 1
    told = (await web.get("/api/runs/one/sample", params={"group": "0-1-0", "index": 0, "step": 1})).json()
    assert told["tokens"]["version"] == [0]
    window = (await web.get("/api/runs/one/timeline")).json()
    assert [track["name"] for track in window["tracks"]] == ["rollout-0", "engine-0", "learner-0", "broadcaster"]
    beside = (await web.get("/api/compare", params={"run": ["one", "two"]})).json()
    assert beside["names"] == ["one", "two"] and len(beside["curves"][1]["points"]) == 6


async def test_a_trace_is_one_that_perfetto_reads(web: httpx.AsyncClient) -> None:
    answer = await web.get("/api/runs/one/trace")
    assert "one-trace.json" in answer.headers["content-disposition"]
    events = answer.json()["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "i"}
    train = next(event for event in events if event["name"] == "train")
    assert train["dur"] == 1_500_000 and train["ts"] >= 0
    names = {event["pid"]: event["args"].get("name") for event in events if event["name"] == "process_name"}
    assert names[train["pid"]] == "learner-0"


@pytest.mark.parametrize("name", ["../elsewhere", "%2e%2e%2felsewhere", "..", "elsewhere", "one%2f..", "%00"])
async def test_no_address_leads_out_of_the_directory(web: httpx.AsyncClient, name: str) -> None:
    for page in ("state", "live", "curves", "samples", "timeline", "trace"):
        answer = await web.get(f"/api/runs/{name}/{page}")
        assert answer.status_code == 404 and "elsewhere/" not in answer.text
    assert (await web.get("/api/compare", params={"run": ["one", "../elsewhere"]})).status_code == 404
    assert (await web.get("/static/%2e%2e/app.py")).status_code == 404


async def test_every_answer_has_the_strict_policy_and_no_file_of_the_page_needs_more(web: httpx.AsyncClient) -> None:
    for path in ("/", "/static/main.js", "/api/runs", "/api/runs/nowhere/state", "/nowhere"):
        policy = (await web.get(path)).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';") and "unsafe" not in policy
    for file in STATIC.iterdir():
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text), file.name
        foreign = [url for url in re.findall(r"https?://[^\"' )]+", text) if url != "http://www.w3.org/2000/svg"]
        assert not foreign, file.name
        if file.suffix == ".html":
            assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=\"/static/)", text), file.name


async def test_no_secret_of_a_configuration_is_in_an_answer(web: httpx.AsyncClient) -> None:
    for path in ("/api/compare?run=one&run=two", "/api/runs/one/state", "/api/runs"):
        answer = await web.get(path)
        assert answer.status_code == 200 and "sesame" not in answer.text


async def test_bad_input_is_one_line(web: httpx.AsyncClient) -> None:
    for path, status, words in (
        ("/api/runs/one/samples?sort=colour", 400, "sort"),
        ("/api/runs/one/samples?step=99", 404, "step 99 is not on record"),
        ("/api/runs/one/curves?most=0", 400, "most"),
        ("/api/compare?run=one", 404, "choose 2 to 12 runs"),
        ("/api/nothing", 404, "Not Found"),
    ):
        answer = await web.get(path)
        message = answer.json()["error"]["message"]
        assert (answer.status_code, words in message, "\n" in message) == (status, True, False), message
    assert (await web.post("/api/runs")).status_code == 405


async def test_with_a_key_nothing_is_answered_without_it(tmp_path: Path) -> None:
    made_run(tmp_path / "one")
    async with client(tmp_path, KEY, headers={"host": "anywhere.example"}) as web:
        for path in ("/api/runs", "/", "/static/main.js", "/api/runs/one/state", "/nowhere"):
            assert (await web.get(path)).status_code == 401
        asked = await web.get("/", headers={"accept": "text/html"})
        assert (asked.status_code, asked.headers["location"]) == (303, "/login")
        assert (await web.get("/login")).status_code == (await web.get("/static/style.css")).status_code == 200
        assert (await web.get("/api/runs", headers={"authorization": "Bearer wrong"})).status_code == 401
        assert (await web.get("/api/runs", headers={"authorization": f"Bearer {KEY}"})).status_code == 200
        wrong = await web.post("/login", data={"key": "wrong"})
        assert "set-cookie" not in wrong.headers and (await web.get("/api/runs")).status_code == 401
        right = await web.post("/login", data={"key": KEY})
        assert "HttpOnly; SameSite=Strict" in right.headers["set-cookie"] and KEY not in right.headers["set-cookie"]
        assert (await web.get("/api/runs")).status_code == 200
        assert (await web.post("/login", content=b"x" * 5000)).status_code == 413


async def test_without_a_key_a_name_that_is_not_this_machines_is_refused(tmp_path: Path) -> None:
    async with client(tmp_path, headers={"host": "rebound.example"}) as web:
        assert (await web.get("/api/runs")).status_code == 421
    named = {"127.0.0.1:80": True, "localhost:8686": True, "[::1]:80": True, "[::1]": True, "LOCALHOST": True}
    named |= {"": False, "example.org": False, "127.0.0.1.example.org:80": False, "10.0.0.1:80": False}
    assert {name: is_local(name) for name in named} == named


def test_it_listens_elsewhere_with_a_key_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked("127.0.0.1", None) is None
    for host in ("0.0.0.0", "192.168.1.5", "::", "myhost"):
        with pytest.raises(ConfigError, match="lets other machines in: give --key"):
            checked(host, None)
        assert checked(host, KEY) == KEY
    monkeypatch.setenv("WEB_KEY", KEY)
    assert checked("0.0.0.0", "env:WEB_KEY") == KEY
    monkeypatch.delenv("WEB_KEY")
    with pytest.raises(ConfigError, match="WEB_KEY"):
        checked("0.0.0.0", "env:WEB_KEY")


async def test_no_run_at_all_is_an_empty_list(tmp_path: Path) -> None:
    async with client(tmp_path) as web:
        assert (await web.get("/api/runs")).json()["runs"] == []
