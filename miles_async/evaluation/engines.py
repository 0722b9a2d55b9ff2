"""The engines of an evaluation, as the evaluator uses them: brought to a version from disk, asked, and nothing else.

Promises: ``load`` returns only when every engine has confirmed the version, after ending whatever it was doing; an engine
that is being replaced is waited for, up to ``engine.start_timeout_s``; a request goes to the engine with the fewest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from bus import Bus
from miles_async.config.loopback import is_loopback
from miles_async.config.schema import RunConfig
from miles_async.config.secrets import resolve
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.kinds.table import addresses_of
from miles_async.router.addresses import is_of_run
from miles_async.weights.push import push
from miles_async.weights.transports.disk import load_from_disk
from miles_async.weights.update import Receiver, Update

PROBE_TIMEOUT_S = 5.0
PROBE_PAUSE_S = 0.25


class EvalEngines:
    """The engines ``names`` of a run, at the addresses that they have put on the bus, each of a host that ``is_ours``.
    ``vocab_size``, ``context_length``: of their model."""

    def __init__(
        self,
        bus: Bus,
        names: tuple[str, ...],
        config: RunConfig,
        session: aiohttp.ClientSession,
        vocab_size: int,
        context_length: int | None = None,
        is_ours: Callable[[str], bool] = is_loopback,
    ) -> None:
        self.bus, self.names, self.config, self.session = bus, names, config, session
        self._vocab_size, self._context_length = vocab_size, context_length
        self._api_key = resolve("engine.api_key", config.engine.api_key)
        # what an engine still does is of an attempt that nobody waits for any more
        self._push = msgspec.structs.replace(config.weights, pause_mode="abort")
        self._is_ours = is_ours
        self._addresses = config.eval.urls or addresses_of(config.engine)
        self._clients: list[EngineClient] = []
        self._inflight: Counter[str] = Counter()

    async def load(self, version: int, path: Path) -> None:
        """Bring all engines to the weights in ``path`` and name them ``version``. Raises EngineError."""
        self._clients = list(await asyncio.gather(*(self._reach(name) for name in self.names)))
        receivers = [Receiver(client.name, client) for client in self._clients]
        report = await push(receivers, Update(version, path, ()), load_from_disk, self._push)
        for name, why in report.failed.items():
            raise EngineError(name, f"version {version}", why)

    async def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers to a /generate of several prompts. Raises EngineError."""
        client = min(self._clients, key=lambda client: self._inflight[client.name])
        self._inflight[client.name] += 1
        try:
            answer = await client.generate(body, self.config.rollout.request_timeout_s)
        finally:
            self._inflight[client.name] -= 1
        if not isinstance(answer, list):
            raise EngineError(client.name, "/generate", "one answer to several prompts")
        return answer

    async def _reach(self, name: str) -> EngineClient:
        """A client of the engine ``name``, once it answers. Raises EngineError."""
        loop, limit = asyncio.get_running_loop(), self.config.engine.start_timeout_s
        deadline = loop.time() + limit
        while True:
            try:
                url = await self.bus.address(name, deadline_s=max(0.0, deadline - loop.time()))
                if not is_of_run(url, self._addresses, self._is_ours):
                    raise EngineError(name, "its address", f"{url} is no place for an engine of this run")
                client = EngineClient(
                    url,
                    self.session,
                    self._api_key,
                    name=name,
                    vocab_size=self._vocab_size,
                    context_length=self._context_length,
                )
                await client.model_info(PROBE_TIMEOUT_S)
                return client
            except (EngineError, TimeoutError) as error:
                if loop.time() >= deadline:
                    raise EngineError(name, "/model_info", f"no answer within {limit:g} s: {error}") from None
            await asyncio.sleep(PROBE_PAUSE_S)
