"""Engines without a model: SGLang's contract over a clock, as many of them in one process and event loop as a test wants.

    python -m benchmarks.lib.synthetic_engine --engines 64 --port 31000        64 engines, on ports 31000 ... 31063

The HTTP side is the embedded engine's own (``miles_async/engines/embedded/app.py``); behind it a clock ends the requests by
the latency model and length distribution of ``synthetic/batch.py``. Different from an engine with a model: token ids and
lengths are made from the seed (``sampling_seed``, or a random one) and log-probs from the version, there are no texts, stop
strings and stop tokens end nothing, weight updates are books that are kept, and no collective is joined.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, cast

import uvicorn
from uvicorn.server import ServerState

from benchmarks.lib.synthetic.batch import EOS, Batch, Draw, Latency, Lengths
from benchmarks.lib.synthetic.compute import LoopCompute
from benchmarks.lib.synthetic.weights import VersionControl
from miles_async.engines.embedded.app import EngineApp
from miles_async.engines.embedded.frontend import Frontend, Job
from miles_async.engines.embedded.sampling_params import RequestLimits
from miles_async.engines.embedded.text import TextCodec
from miles_async.http.asgi import Receive, Scope, Send
from miles_async.http.deadlines import DEADLINES
from miles_async.http.limits import answer_at_once, send_whole
from miles_async.http.protocol import protocol
from miles_async.http.refusals import Refusals

# slow: everything takes SLOWDOWN times as long. stuck: HTTP is answered, no token comes. hung: connections are accepted,
# nothing is answered. lying: LIE is reported as the version, whatever is served. no_http, no_json: what the answers are not.
Misbehaviour = Literal["slow", "stuck", "hung", "lying", "no_http", "no_json"]
SLOWDOWN = 20.0
LIE = "1000000"
NO_HTTP = b"\x16\x03\x01\x00\xee this is no answer of an HTTP server\r\n\r\n"
NO_JSON = b"<html><body>Bad gateway, but with status 200</body></html>"
NAME_HEADER = b"x-synthetic-engine"  # of every answer: whose it is
LATENCY, LENGTHS = Latency(), Lengths()


class Answered(NamedTuple):
    """One whole answer: to which request, and from when to when (loop time) the engine had it."""

    rid: str
    began: float
    ended: float


class _Frontend(Frontend):
    """The embedded engine's, with a clock instead of a thread."""

    def __init__(self, batch: Batch, limits: RequestLimits) -> None:
        super().__init__(cast(Any, batch), limits, TextCodec("no tokenizer"), frozenset((EOS,)))
        self.clock = LoopCompute(batch, self._deliver)
        self.compute = cast(Any, self.clock)
        self.last_answer: list[str] = []  # the requests of the answer that was made last

    def answer(self, job: Job) -> bytes:
        # an aborted one will be asked for again: that is no second answer
        whole = [request for request in job.requests if request.finish and request.finish["type"] != "abort"]
        self.last_answer = [request.item.rid for request in whole]
        return super().answer(job)


class SyntheticEngine:
    """One engine. Make it, then :meth:`start` it; ``url`` stays the same from then on."""

    def __init__(
        self,
        name: str = "synthetic",
        *,
        latency: Latency = LATENCY,
        lengths: Draw = LENGTHS,
        max_running_requests: int = 64,
        vocab_size: int = 1024,
        context_length: int = 32768,
        weight_version: str = "0",
        update_s: float = 0.0,
        port: int = 0,
    ) -> None:
        self.name, self.port, self.url = name, port, ""
        self.latency, self.lengths, self.update_s = latency, lengths, update_s
        self.limits = RequestLimits(vocab_size, context_length, False)
        self.max_running_requests, self.first_version = max_running_requests, weight_version
        self.served: list[tuple[float, str]] = []
        self.answered: list[Answered] = []
        self.alive = False
        self.misbehaves: Misbehaviour | None = None
        self._awake = asyncio.Event()

    # -- its life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, with nothing in memory and the weights it was made with. Raises OSError: the port is taken."""
        version = self.first_version
        self.batch = Batch(
            self.latency,
            self.lengths,
            vocab=self.limits.vocab_size,
            max_running=self.max_running_requests,
            version=version,
        )
        self._frontend = _Frontend(self.batch, self.limits)
        self.weights = VersionControl(
            self._frontend.clock, "synthetic", version, self._frontend.abort_all, self.served, self.update_s
        )
        self._refusals = Refusals()
        info = {
            "model_path": "synthetic",
            "tokenizer_path": "synthetic",
            "device": "none",
            "context_length": self.limits.context_length,
            "max_running_requests": self.max_running_requests,
            "weight_version": version,
            "tp_size": 1,
            "dp_size": 1,
            "version": "synthetic",
        }
        model = cast(Any, SimpleNamespace(model_type="synthetic", architecture="SyntheticForCausalLM"))
        self._app = EngineApp(self._frontend, cast(Any, self.weights), model, info, None, self._refusals)
        self.misbehaves = None
        self._awake.set()
        await self._listen()
        self.alive = True

    async def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=2048)
        answer_at_once(listener)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._state = ServerState()
        config = uvicorn.Config(
            self._serve,
            http=_connection(self),
            interface="asgi3",
            proxy_headers=False,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=600,
        )
        config.load()
        make = cast(Any, config.http_protocol_class)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: make(config, self._state, {}), sock=listener)

    def die(self) -> None:
        """Nobody listens any more, connections are reset, what was under way is gone."""
        self.alive = False
        self._server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        self._frontend.clock.close()
        self._frontend._fail(ConnectionResetError("the engine has died"))
        self._awake.set()

    # -- what it does wrong -------------------------------------------------------------------------------------

    async def misbehave(self, how: Misbehaviour | None) -> None:
        """From now on; None: it behaves again."""
        self.misbehaves = how
        self._frontend.clock.catch_up()
        await self._frontend.clock.call(lambda batch: self._set(batch, how))
        await self.weights.tell(LIE if how == "lying" else None)
        if how == "hung":
            self._awake.clear()
        else:
            self._awake.set()

    def _set(self, batch: Batch, how: Misbehaviour | None) -> None:
        batch.slowdown = SLOWDOWN if how == "slow" else 1.0
        batch.freeze(how in ("stuck", "hung"))

    # -- HTTP ---------------------------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, left = asyncio.get_running_loop().time(), False

        async def receiving() -> Any:
            nonlocal left
            message = await receive()
            left = left or message["type"] == "http.disconnect"
            return message

        async def sending(message: Any) -> None:
            if self.misbehaves == "hung":
                await self._awake.wait()
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (NAME_HEADER, self.name.encode())]
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and scope["path"] == "/generate" and self.alive and not left:
                rids, self._frontend.last_answer = self._frontend.last_answer, []
                self.answered += [Answered(rid, began, asyncio.get_running_loop().time()) for rid in rids]
            await send(message)

        if self.misbehaves == "hung":
            await self._awake.wait()
        if self.misbehaves == "no_json":
            await send_whole(send, 200, [(b"content-type", b"application/json")], NO_JSON)
            return
        self._frontend.clock.catch_up()  # for the gauges
        await self._app(scope, receiving, sending)


def _connection(engine: SyntheticEngine) -> Any:
    """The HTTP side of every server of ours, unless the engine is to speak something else."""
    base = protocol(engine._refusals, DEADLINES)

    class Connection(base):
        def data_received(self, data: bytes) -> None:
            if engine.misbehaves == "no_http":
                self.transport.write(NO_HTTP)
                self.transport.close()
            else:
                super().data_received(data)

    return Connection


async def _serve_until_signal(count: int, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    engines = [SyntheticEngine(f"engine-{i}", port=port + i if port else 0) for i in range(count)]
    for engine in engines:
        await engine.start()
        print(f"{engine.name} at {engine.url}", flush=True)
    await stop.wait()
    for engine in engines:
        engine.die()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.lib.synthetic_engine", description=__doc__)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--port", type=int, default=31000, help="of the first one; 0: any free ones")
    given = parser.parse_args()
    asyncio.run(_serve_until_signal(given.engines, given.port))


if __name__ == "__main__":
    main()
