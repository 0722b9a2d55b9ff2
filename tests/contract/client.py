"""The suite's way to talk to an engine: HTTP as it is, with a deadline on everything, and requests watched while they run."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

DEADLINE_S = 60.0
QUIET_LOOKS = 2  # in a row, of STILL_S each
STILL_S = 0.5  # how long something that must not happen is given to happen
LONG = 3500  # tokens: a request of so many is under way until it is aborted
PROMPT = (5, 6, 7, 8, 9)


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any  # JSON, or text


class Watched:
    """A streamed /generate request that runs in the background.

    A chunk is parsed when somebody looks at it: each has all tokens so far, and who parsed them all would be far behind an
    engine that shares its core.
    """

    def __init__(self, engine: Engine, body: dict[str, Any]) -> None:
        self.rid: str = body["rid"]
        self._engine = engine
        self._lines: list[bytes] = []
        self._parsed: tuple[int, dict[str, Any]] = (0, {})  # of so many lines the last one
        self.done_line = False
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._read(engine, body))

    async def _read(self, engine: Engine, body: dict[str, Any]) -> None:
        try:
            async with engine.session.post(engine.url + "/generate", json={**body, "stream": True}) as response:
                assert response.status == 200, await response.text()
                async for line in response.content:
                    data = line.removeprefix(b"data: ").strip()
                    if data == b"[DONE]":
                        self.done_line = True
                    elif data:
                        self._lines.append(data)
                        self._news.set()
        finally:
            self._news.set()

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._lines]

    @property
    def answer(self) -> dict[str, Any]:
        """The latest chunk."""
        if self._parsed[0] != len(self._lines):
            self._parsed = len(self._lines), json.loads(self._lines[-1])
        return self._parsed[1]

    @property
    def n_tokens(self) -> int:
        return len(self.answer.get("output_ids", ()))

    async def until_tokens(self, count: int) -> None:
        """Returns when the response has ``count`` tokens or more. Fails if the request ends before."""
        async with asyncio.timeout(DEADLINE_S):
            while self.n_tokens < count:
                assert not self._task.done(), f"ended after {self.n_tokens} tokens: {self.answer.get('meta_info')}"
                self._news.clear()
                await self._news.wait()

    async def until_still(self) -> int:
        """Number of tokens once no more of them come: those made before a pause may arrive after it, where the machine is busy
        long after it. A server that answers other requests meanwhile has had its turns to send them."""
        async with asyncio.timeout(DEADLINE_S):
            quiet = 0
            while quiet < QUIET_LOOKS:
                before = len(self._lines)
                await self._engine.weight_version()
                await asyncio.sleep(STILL_S)
                await self._engine.weight_version()
                quiet = quiet + 1 if len(self._lines) == before else 0
            return self.n_tokens

    async def finished(self) -> dict[str, Any]:
        """The last chunk."""
        async with asyncio.timeout(DEADLINE_S):
            await self._task
        return self.answer

    async def disconnect(self) -> None:
        """Close the connection without reading the rest."""
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=DEADLINE_S)


class Engine:
    """A running engine. ``model`` is the checkpoint it was started with, as version ``VERSION``; ``other`` is another one."""

    VERSION = "0"

    def __init__(self, kind: str, url: str, model: Path, other: Path, session: aiohttp.ClientSession) -> None:
        self.kind = kind
        self.url = url
        self.model = model
        self.other = other
        self.session = session

    async def call(self, method: str, path: str, body: Any = None) -> Answer:
        async with self.session.request(
            method, self.url + path, json=body, timeout=aiohttp.ClientTimeout(total=DEADLINE_S)
        ) as response:
            text = await response.text()
            try:
                return Answer(response.status, json.loads(text))
            except ValueError:
                return Answer(response.status, text)

    async def post(self, path: str, **body: Any) -> Answer:
        return await self.call("POST", path, body)

    async def ok(self, path: str, **body: Any) -> Any:
        """POST that has to succeed; its body."""
        answer = await self.post(path, **body)
        assert answer.status == 200, f"{path}: {answer}"
        return answer.body

    async def generate(self, prompt: Sequence[int] = PROMPT, **fields: Any) -> Any:
        """One /generate call that has to succeed; the other names of its body in ``fields``."""
        return await self.ok("/generate", input_ids=list(prompt), **fields)

    def watch(self, max_new_tokens: int, **fields: Any) -> Watched:
        """Start a long request: it ignores the end token and reports log-probs.

        Its id is a fresh one: SGLang aborts the id of a streamed answer once more two seconds after its end.
        """
        body = {
            "rid": uuid.uuid4().hex,
            "input_ids": list(PROMPT),
            "sampling_params": {"max_new_tokens": max_new_tokens, "ignore_eos": True},
            "return_logprob": True,
            **fields,
        }
        return Watched(self, body)

    async def weight_version(self) -> str:
        answer = await self.call("GET", "/model_info")
        assert answer.status == 200
        return answer.body["weight_version"]

    async def checksums(self) -> dict[str, str]:
        """Name (the engine's own) to hash, of every tensor."""
        body = await self.ok("/weights_checker", action="checksum")
        assert body["success"]
        return body["ranks"][0]["checksums"]


def sampled(answer: dict[str, Any]) -> list[float]:
    """Log-probs that an answer reports for its own tokens; checks that they belong to these tokens."""
    entries = answer["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in entries] == answer["output_ids"]
    return [entry[0] for entry in entries]
