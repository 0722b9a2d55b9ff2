"""SGLang's own router (the package ``sglang-router``) as a child process, and its list of engines.

Promises: ``start`` returns a router that answers, or raises one clear line with the end of its log; :meth:`set_engines`
brings its list to the given one and says what it still lacks (it takes engines in the background, and asks each of them
first); keys are on no command line; the process dies with us.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from miles_async.config.schema import ConfigError
from miles_async.engines.sglang import process_group
from miles_async.engines.sglang.command import bound_to
from miles_async.engines.sglang.driver import free_port
from miles_async.http.address import url_of

PROBE_S = 0.1
ASK_S = 10.0
KILL_S = 10.0
LOG_LINES = 10
# the key comes over the environment, which other users cannot read
LAUNCH = (
    "import os, sys; key = os.environ.pop('MILES_ASYNC_ROUTER_KEY', ''); "
    "sys.argv += ['--api-key', key] if key else []; from sglang_router.launch_router import main; main()"
)


class SglangRouterError(RuntimeError):
    """The router did not start, ended, or refused a call."""


class SglangRouterProcess:
    """A running router. Make it with :meth:`start`, end it with :meth:`stop`."""

    def __init__(
        self, process: asyncio.subprocess.Process, url: str, log_file: Path, key: str | None, engine_key: str | None
    ) -> None:
        self._process, self.url, self._log_file = process, url, log_file
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._engine_key = engine_key

    @classmethod
    async def start(
        cls,
        host: str,
        port: int,
        *,
        log_file: Path,
        metrics_host: str = "127.0.0.1",
        args: Sequence[str] = (),
        key: str | None = None,
        engine_key: str | None = None,
        timeout_s: float = 60.0,
    ) -> SglangRouterProcess:
        """metrics_host: where its metrics are, for which it asks no key. args: further flags of
        ``sglang_router.launch_router``, which win over ours. key: what it asks for; engine_key: what it brings to engines.

        Raises ConfigError: not installed; SglangRouterError: exited, or silent for ``timeout_s``.
        """
        if importlib.util.find_spec("sglang_router") is None:
            raise ConfigError(
                'router.kind = "sglang" needs the package sglang-router, which is not installed for '
                f'{sys.executable}: pip install sglang-router, or use router.kind = "builtin"'
            )
        # an engine that is paused for its weights does not answer /health: who is dead, the run's own hosts say
        words = [sys.executable, "-c", LAUNCH, "--host", host, "--port", str(port), "--disable-health-check"]
        # its metrics would be on port 29000 of every address, where those of another run may be
        words += ["--prometheus-host", metrics_host, "--prometheus-port", str(free_port(metrics_host))]
        words += ["--policy", "round_robin", "--log-level", "warn", *args]
        env = os.environ | ({"MILES_ASYNC_ROUTER_KEY": key} if key else {})
        with log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *bound_to(os.getpid(), words), stdout=log, stderr=log, env=env, start_new_session=True
            )
        router = cls(process, url_of(host, port), log_file, key, engine_key)
        exited = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(timeout_s):
                while not await router._answers():
                    await asyncio.wait({exited}, timeout=PROBE_S)
        except TimeoutError:
            await router.stop()
            raise SglangRouterError(f"no answer within {timeout_s:g} s; {router._log_end()}") from None
        except BaseException:
            await router.stop()
            raise
        finally:
            exited.cancel()
        return router

    async def wait(self) -> SglangRouterError:
        """Until it ends; what to say of that."""
        status = await self._process.wait()
        return SglangRouterError(f"sglang-router ended with status {status}; {self._log_end()}")

    async def stop(self) -> None:
        await process_group.end(self._process.pid, 0.0, KILL_S)
        await self._process.wait()

    async def set_engines(self, urls: Collection[str], session: aiohttp.ClientSession) -> set[str]:
        """Add and remove what differs; returns the URLs that it has not taken yet. Raises SglangRouterError."""
        known = {str(worker["url"]): str(worker["id"]) for worker in await self.workers(session)}
        for url in set(urls) - set(known):
            body = {"url": url, "api_key": self._engine_key} if self._engine_key else {"url": url}
            await self._call(session, "POST", "/workers", body)
        for url in set(known) - set(urls):
            await self._call(session, "DELETE", f"/workers/{known[url]}")
        return set(urls) - set(known)

    async def workers(self, session: aiohttp.ClientSession) -> list[dict[str, Any]]:
        """Each with ``id``, ``url``, ``is_healthy`` and ``load`` (requests in flight). Raises SglangRouterError."""
        return (await self._call(session, "GET", "/workers"))["workers"]

    async def _call(self, session: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
        limit = aiohttp.ClientTimeout(total=ASK_S)
        try:
            async with session.request(
                method, self.url + path, json=body, headers=self._headers, timeout=limit
            ) as answer:
                content = await answer.read()
                if answer.status >= 300:
                    raise SglangRouterError(f"{method} {path}: HTTP {answer.status} {content[:200]!r}")
                return await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise SglangRouterError(f"{method} {path}: {type(error).__name__}: {error}") from None

    async def _answers(self) -> bool:
        if self._process.returncode is not None:
            raise await self.wait()
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_S)) as session,
                session.get(self.url + "/health") as answer,
            ):
                return answer.status == 200
        return False

    def _log_end(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return f"the end of its log {self._log_file}:\n" + "\n".join(lines)
