"""Malformed HTTP requests for every endpoint of the router and of an engine, and a client that sends them.

Promises: the same seed gives the same requests; each is one that has to be refused with a status of 400 to 499; the client
tells what came back, 0 where the connection was closed without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import Any, Literal
from urllib.parse import urlsplit

Target = Literal["router", "engine"]

ENGINE_JSON = (
    "/generate",
    "/abort_request",
    "/pause_generation",
    "/init_weights_update_group",
    "/destroy_weights_update_group",
    "/update_weights_from_distributed",
    "/update_weights_from_disk",
    "/update_weight_version",
    "/weights_checker",
    "/begin_weight_update",
    "/end_weight_update",
    "/continue_generation",
    "/flush_cache",
)
ENGINE_GET = ("/model_info", "/get_model_info", "/server_info", "/get_server_info", "/v1/loads", "/v1/models")
OPEN = ("/health", "/health_generate", "/ready")  # of an engine: asked without a key
ROUTER_GET = ("/workers", "/metrics", "/list_workers", "/openapi.json")
MILES = ("/add_worker", "/remove_worker")
VERSIONS = ("seven", "-1", "1.5", "9" * 40, "", "0x1", "\xb2")  # no value of x-weight-version
SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (-1, "hot", 1e300),
    "top_p": (0, 2, []),
    "top_k": (0, -7, 1.5),
    "min_p": (-1, 3),
    "max_new_tokens": (-1, 2**40, 2**70, "many"),
    "sampling_seed": (2**63, 2**70, 0.5),
    "n": (-3, 2**40),
    "stop": (["x"] * 99, 5, "s" * 5000),
    "stop_token_ids": ("x", [0.5], [1] * 5000),
    "logit_bias": ({"x": 1}, {"99999999999": 1}, {"1": 1e300}, {"²": 1}),
    "regex": ("a*",),
    "unheard_of": (1,),
}
GENERATE: tuple[Any, ...] = (
    {},
    [],
    5,
    {"input_ids": "abc"},
    {"input_ids": [1.5]},
    {"input_ids": []},
    {"input_ids": [[]]},
    {"input_ids": [-1]},
    {"input_ids": [2**70]},
    {"input_ids": [10**9]},
    {"input_ids": [[1], [2, -3]]},
    {"input_ids": [1] * 100_000},
    {"input_ids": [1], "rid": 5},
    {"input_ids": [1], "rid": "r" * 5000},
    {"input_ids": [[1], [1]], "rid": ["a", "a"]},
    {"input_ids": [1], "return_logprob": True, "top_logprobs_num": 3},
    {"input_ids": [1], "return_logprob": True, "logprob_start_len": 99},
    {"input_ids": [1], "stream": "yes"},
    {"input_ids": [[1], [2]], "sampling_params": [{}, {}, {}]},
)
BODIES: dict[str, tuple[Any, ...]] = {
    "/abort_request": ({"rid": 5}, {"abort_all": "yes"}),
    "/pause_generation": ({"mode": "asleep"}, {"mode": 1}),
    "/init_weights_update_group": (
        {},
        {"master_address": "a b", "master_port": 1, "rank_offset": 1, "world_size": 2},
        {"master_address": "x", "master_port": 99999, "rank_offset": 1, "world_size": 2},
        {"master_address": "x", "master_port": 1, "rank_offset": -1, "world_size": 2, "backend": "gloo"},
        {"master_address": "x", "master_port": 1, "rank_offset": 5, "world_size": 2, "backend": "gloo"},
        {"master_address": "x", "master_port": 1, "rank_offset": 1, "world_size": 2, "backend": "pigeon"},
    ),
    "/destroy_weights_update_group": ({"group_name": "unheard of"}, {"group_name": 5}),
    "/update_weights_from_distributed": (
        {},
        {"names": ["a"], "dtypes": [], "shapes": [], "group_name": "unheard of"},
        {"names": ["a"], "dtypes": ["exec"], "shapes": [[-1]], "group_name": "unheard of"},
    ),
    "/update_weights_from_disk": ({}, {"model_path": "/nowhere"}, {"model_path": "\0"}, {"model_path": "x" * 5000}),
    "/update_weight_version": ({}, {"new_version": 5}),
    "/weights_checker": ({"action": "explode"}, {"action": 1}),
}
WORKERS: tuple[Any, ...] = (
    {},
    [],
    {"url": 5},
    {"url": "https://nope"},
    {"url": "http://["},
    {"url": "http://x:99999"},
    {"url": "http://a b"},
    {"url": "http://x\r\ny: z"},
    {"url": "http://x", "version": 2**70},
    {"url": "http://" + "x" * 5000},
)
NOT_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\0" * 64,
    b"FETCH /generate HTTP/1.1\r\n\r\n",
    b"GET /generate HTTP/9.9\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
    b"POST /generate HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
    b"POST /generate HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    b"POST /generate HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nx: \0\r\n\r\n",
    b"*1\r\n$4\r\nPING\r\n",
)


class HttpFuzz:
    """A seeded source of malformed requests for servers that ask for ``key``."""

    def __init__(self, seed: int, key: str) -> None:
        self.rng = random.Random(seed)
        self.key = key

    def request(self, target: Target) -> bytes:
        """The bytes of one request that has to be refused."""
        draw = self.rng.random()
        if draw < 0.08:
            return self.rng.choice(NOT_HTTP) + self.rng.randbytes(self.rng.randint(0, 40)) + b"\r\n\r\n"
        if draw < 0.30:
            return self._without_key(target)
        if draw < 0.34:  # announced, and never sent
            path = self.rng.choice(("/workers",) if target == "router" else ENGINE_JSON)
            return self._head("POST", path, [f"content-length: {10**12}"])
        if draw < 0.35:
            return self._head("GET", "/model_info", [f"x-{i}: {'y' * 2000}" for i in range(200)])
        if draw < 0.50:
            return self._nowhere(target)
        return self._bad_body(target)

    def _without_key(self, target: Target) -> bytes:
        path = self.rng.choice(ENGINE_JSON + ENGINE_GET + (ROUTER_GET if target == "router" else ()))
        headers = self.rng.choice(
            ([], ["authorization: Bearer wrong"], ["authorization: Basic " + self.key], ["authorization: " + "é" * 50])
        )
        return self._body(self.rng.choice(("GET", "POST", "PUT", "DELETE")), path, self._garbage(), headers, key=False)

    def _nowhere(self, target: Target) -> bytes:
        word = "".join(self.rng.choices("abcxyz/%._-0123456789", k=self.rng.randint(1, 60)))
        if target == "router" and self.rng.random() < 0.3:
            return self._body("DELETE", f"/workers/none{word}", b"")
        if self.rng.random() < 0.3:  # no endpoint takes these
            method = self.rng.choice(("DELETE", "PATCH", "OPTIONS"))
            return self._body(method, self.rng.choice(ENGINE_JSON + ENGINE_GET + OPEN), self._garbage())
        return self._body(self.rng.choice(("GET", "POST")), f"/none/{word}?{word}", self._garbage())

    def _bad_body(self, target: Target) -> bytes:
        if target == "router" and self.rng.random() < 0.3:
            return self._bad_for_router()
        path = self.rng.choice(ENGINE_JSON)
        if path == "/generate":
            if self.rng.random() < 0.5:
                name = self.rng.choice(list(SAMPLING))
                body: Any = {"input_ids": [1, 2], "sampling_params": {name: self.rng.choice(SAMPLING[name])}}
                return self._body("POST", path, json.dumps(body).encode())
            return self._body("POST", path, self._json_or_garbage(GENERATE))
        return self._body("POST", path, self._json_or_garbage(BODIES.get(path, ())))

    def _bad_for_router(self) -> bytes:
        draw = self.rng.random()
        if draw < 0.3:
            return self._body("POST", self.rng.choice(MILES), self._garbage())
        if draw < 0.5:
            header = self.rng.choice(("x-weight-version: ", "x-min-weight-version: ")) + self.rng.choice(VERSIONS)
            return self._body("POST", "/generate", self._garbage(), [header])
        return self._body("POST", "/workers", self._json_or_garbage(WORKERS))

    def _json_or_garbage(self, bodies: tuple[Any, ...]) -> bytes:
        return json.dumps(self.rng.choice(bodies)).encode() if bodies and self.rng.random() < 0.6 else self._garbage()

    def _garbage(self) -> bytes:
        """What is no JSON object, and not empty."""
        return self.rng.choice(
            (
                b"\xff" + self.rng.randbytes(self.rng.randint(0, 100)),
                b"[" * self.rng.choice((1, 5_000)),
                b'{"a":' * self.rng.choice((1, 5_000)),
                b'{"input_ids": [1], ',
                b'"\xed\xa0\x80"',
                b"null",
                b"7" * 400,
                b"true",
            )
        )

    def _body(
        self, method: str, path: str, body: bytes, headers: list[str] | None = None, *, key: bool = True
    ) -> bytes:
        return self._head(method, path, [*(headers or []), f"content-length: {len(body)}"], key=key) + body

    def _head(self, method: str, path: str, headers: list[str], *, key: bool = True) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "host: x", *headers]
        if key:
            lines.append(f"authorization: Bearer {self.key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Client:
    """One connection to a server, made again when that has closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, request: bytes, timeout_s: float = 60.0) -> int:
        """The status that ``request`` gets; 0: the connection was closed without one. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            try:
                if self._writer is None:
                    self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
                assert self._reader is not None
                self._writer.write(request)
                await self._writer.drain()
                return await self._answer(self._reader)
            except (OSError, asyncio.IncompleteReadError, ValueError, IndexError):
                await self.close()
                return 0

    async def _answer(self, reader: asyncio.StreamReader) -> int:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        status = int(lines[0].split()[1])
        await reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection") == "close":
            await self.close()
        return status

    async def close(self) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
