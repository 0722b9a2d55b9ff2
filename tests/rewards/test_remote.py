"""``remote_rm`` against a real HTTP server: retries, the deadline, and answers that are no reward."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from miles_async.config.schema import ConfigError, Reward
from miles_async.rewards import Graded, Grader, RewardError, RewardSample

SAMPLE = RewardSample(prompt="6*7=", response="42 \\boxed{é}", label="42", metadata={"source": {"row": 1}})


class RewardServer:
    """Answers with the next of ``answers`` (status, body), the last one for ever; a body of None never comes."""

    def __init__(self, *answers: tuple[int, str | None]) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.at_once = self.most_at_once = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.asked.append(await request.json())
            status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            await asyncio.sleep(3600 if body is None else 0.02)
            return web.Response(status=status, text=body, headers={"location": "/elsewhere"} if status == 302 else {})
        finally:
            self.at_once -= 1


@asynccontextmanager
async def serving(server: RewardServer, **keys: Any) -> AsyncIterator[Grader]:
    """A grader that asks ``server``."""
    app = web.Application()
    app.router.add_post("/reward", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    keys = {"rm_type": "remote_rm", "rm_url": f"http://{host}:{port}/reward?key=hidden"} | keys
    try:
        async with Grader(Reward(**keys)) as grader:
            yield grader
    finally:
        await runner.cleanup()


async def test_it_sends_prompt_both_responses_label_metadata_and_takes_a_number() -> None:
    server = RewardServer((200, "0.75"))
    async with serving(server) as grader:
        assert await grader.score([SAMPLE]) == [Graded(0.75)]
        whole = msgspec.structs.replace(SAMPLE, raw_response="<think>42</think>")
        assert await grader.score([whole]) == [Graded(0.75)]
    row = {"prompt": "6*7=", "response": "42 \\boxed{é}", "label": "42", "metadata": {"source": {"row": 1}}}
    assert server.asked == [row | {"raw_response": ""}, row | {"raw_response": "<think>42</think>"}]


async def test_boxed_it_sends_only_what_stands_in_the_box() -> None:
    server = RewardServer((200, "1"))
    async with serving(server, rm_type="boxed_remote_rm") as grader:
        assert await grader.grade(SAMPLE) == 1.0
    assert server.asked[0]["response"] == "é"


async def test_an_object_of_numbers_is_read_by_reward_key() -> None:
    server = RewardServer((200, '{"score": 2, "length": 0.5}'))
    async with serving(server, reward_key="score") as grader:
        assert await grader.score([SAMPLE]) == [Graded(2.0, {"score": 2.0, "length": 0.5})]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_a_failure_that_may_pass_is_tried_again(status: int) -> None:
    server = RewardServer((status, "busy"), (status, "busy"), (200, "1"))
    async with serving(server) as grader:
        assert await grader.grade(SAMPLE) == 1.0
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, "nothing here", "answered 404"),
        (302, "", "answered 302"),
        (200, "not JSON", "answered what is no JSON"),
        (200, "", "answered what is no JSON"),
        (200, "NaN", "answered what is no JSON"),
        (200, '"1.0"', "a reward must be a number, not str"),
        (200, "null", "a reward must be a number, not NoneType"),
        (200, "[1]", "a reward must be a number, not list"),
        (200, '{"score": "x"}', 'the part "score" of a reward must be a number, not str'),
        (200, '{"a": 1}', "which part is the reward?"),
        (200, "[" * 100_000, "answered what is no JSON"),
        (200, "1" * (1 << 20) + "1", "answered more than 1048576 bytes"),
    ],
)
async def test_an_answer_that_is_no_reward_is_an_error_at_once(status: int, body: str, expected: str) -> None:
    server = RewardServer((status, body))
    async with serving(server) as grader:
        (error,) = await grader.score([SAMPLE])
    assert isinstance(error, RewardError)
    assert error.reason == "reward_error"
    assert expected in str(error)
    assert "hidden" not in str(error)
    assert len(server.asked) == 1


@pytest.mark.parametrize(("answer", "last"), [((200, None), "it did not answer"), ((500, "x"), "it answered 500")])
async def test_the_deadline_holds_over_all_attempts(answer: tuple[int, str | None], last: str) -> None:
    async with serving(RewardServer(answer), timeout_s=0.5) as grader:
        started = time.monotonic()
        grades = await grader.score([SAMPLE] * 3)
        took = time.monotonic() - started
    expected = f"reward_timeout: the server at reward.rm_url gave no reward within 0.5 s: {last}"
    assert [str(grade) for grade in grades] == [expected] * 3
    assert 0.5 <= took < 5


async def test_a_server_that_is_not_there_is_a_timeout_that_says_so() -> None:
    async with serving(RewardServer((200, "1")), rm_url="http://127.0.0.1:1/", timeout_s=0.3) as grader:
        with pytest.raises(RewardError, match=r"within 0.3 s: no connection \(ClientConnectorError\)"):
            await grader.grade(SAMPLE)


async def test_a_url_of_nothing_is_an_error() -> None:
    async with serving(RewardServer((200, "1")), rm_url="http://:bad:/") as grader:
        with pytest.raises(RewardError, match=r"reward\.rm_url is not the URL of an HTTP server"):
            await grader.grade(SAMPLE)


async def test_many_samples_are_asked_about_at_once_but_not_all() -> None:
    server = RewardServer((200, "1"))
    async with serving(server) as grader:
        assert await grader.score([SAMPLE] * 200) == [Graded(1.0)] * 200
    assert 8 < server.most_at_once <= 64


async def test_the_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_SERVER", raising=False)
    with pytest.raises(ConfigError, match="REWARD_SERVER is not set"):
        Grader(Reward(rm_type="remote_rm", rm_url="env:REWARD_SERVER"))
    monkeypatch.setenv("REWARD_SERVER", "http://127.0.0.1:1/")
    async with serving(RewardServer((200, "1")), rm_url="env:REWARD_SERVER", timeout_s=0.2) as grader:
        with pytest.raises(RewardError, match="no connection"):
            await grader.grade(SAMPLE)
