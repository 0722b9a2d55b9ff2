"""The real SGLang server as a child process of ours: started, watched, stopped.

Promises: ``start`` returns a server that has generated its first token and passes the check (``check.py``), or raises one
clear line with the end of the server's log, at once if it exits and at the deadline if it hangs; nothing of it is left
behind after ``stop``, after a failed or cancelled ``start``, or after our own death.

    us ── bound_exec ══exec══► sglang.launch_server ──► scheduler, detokenizer        (bound_exec.py: all die with us)
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import aiohttp

from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.sglang import process_group
from miles_async.engines.sglang.check import check_server
from miles_async.engines.sglang.command import (
    ServerOptions,
    SglangError,
    bound_to,
    command_line,
    environment,
    installed_version,
    resolve_device,
)
from miles_async.engines.sglang.crowded import OwnTime
from miles_async.http.address import url_of

__all__ = ["SglangError", "SglangServer", "free_port"]

SHARED = "/dev/shm/sglang_"  # the server's load statistics, which outlive a killed one
LOG_LINES = 15  # of the server's log, in an error
PROBE_INTERVAL_S = 0.25
PROBE_TIMEOUT_S = 25.0  # /health of a server that is up but stuck answers 503 after 20 s
KILL_DEADLINE_S = 10.0


class SglangServer:
    """A running server; made by :meth:`start`.

    url: ``http://host:port``. pid: of the server's main process, also its process group. version: of sglang.
    suspicious: what the check found odd, a line each.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        options: ServerOptions,
        version: str,
        log_file: Path,
        temporary: tempfile.TemporaryDirectory[str],
    ) -> None:
        self._process = process
        self._log_file = log_file
        self._temporary = temporary
        self.options = options
        self.version = version
        self.suspicious: tuple[str, ...] = ()
        self._shared: set[Path] = set()  # noted while it lives: one that is killed leaves them behind
        self.pid = process.pid
        self.url = url_of(options.host, options.port)

    @classmethod
    async def start(
        cls,
        model_path: str,
        *,
        log_file: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Literal["float32", "bfloat16"] = "float32",
        max_running_requests: int = 256,
        context_length: int | None = None,
        tp_size: int = 1,
        args: Sequence[str] = (),
        weight_version: str = "0",
        api_key: str | None = None,
        routes: bool = False,
        timeout_s: float = 180.0,
    ) -> SglangServer:
        """Start a server and wait until it answers. The event loop must run in a thread that outlives the server.

        port: 0 is any free one. args: further flags of ``sglang.launch_server``, which win over ours. log_file: what the
        server's output is appended to. routes: whether it is to be able to return experts. timeout_s: seconds until it has to
        answer, on a machine with a core for everybody; on one that is busy as much longer as that makes it (``crowded.py``).
        Raises SglangError: not installed, too old, exited, not ready in time, port in use; UnfitServerError: it cannot be an
        engine, for what it is or has been told.
        """
        version = installed_version()
        resolved = await asyncio.to_thread(resolve_device, device)
        options = ServerOptions(
            model_path=model_path,
            host=host,
            port=port or free_port(host),
            device=resolved,
            dtype=dtype,
            max_running_requests=max_running_requests,
            context_length=context_length,
            tp_size=tp_size,
            weight_version=weight_version,
            args=tuple(args),
            routes=routes,
        )
        _require_bindable(host, options.port)
        temporary = tempfile.TemporaryDirectory(prefix="sglang-", ignore_cleanup_errors=True)
        secret = _secret_config(Path(temporary.name), api_key)
        with log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *bound_to(os.getpid(), command_line(options, secret)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(resolved, Path(temporary.name), os.environ),
                start_new_session=True,
            )
        server = cls(process, options, version, log_file, temporary)
        try:
            await server._wait_until_ready(api_key, timeout_s)
        except BaseException:
            await asyncio.shield(server.stop())
            raise
        if secret is not None:
            secret.unlink()
        return server

    def alive(self) -> bool:
        """Whether the server's main process runs."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """The exit status of the server's main process, once it has one (negative: the signal that killed it)."""
        return await self._process.wait()

    async def stop(self, grace_s: float = 0.0) -> None:
        """End the server and all its processes, and remove its temporary files. Does nothing if it was stopped.

        grace_s: seconds for what runs to be finished; SGLang looks only every 5 s whether it was asked to end, and it
        holds nothing that has to be saved. Raises SglangError if a process survives SIGKILL.
        """
        self._note_shared_files()
        try:
            await process_group.end(self.pid, grace_s, KILL_DEADLINE_S)
        except TimeoutError as error:
            raise SglangError(f"SGLang server {self.url}: {error}") from None
        async with asyncio.timeout(KILL_DEADLINE_S):  # nothing runs any more: only the exit status is to be read
            await self._process.wait()
        for path in self._shared:
            path.unlink(missing_ok=True)
        self._temporary.cleanup()

    def log_tail(self, lines: int = LOG_LINES) -> str:
        """The last lines that the server wrote."""
        return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-lines:])

    def _note_shared_files(self) -> None:
        self._shared |= process_group.mapped_files(process_group.running_members(self.pid), SHARED)

    async def _wait_until_ready(self, api_key: str | None, timeout_s: float) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        exited = asyncio.create_task(self._process.wait())
        loop, lasted = asyncio.get_running_loop(), OwnTime()
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        try:
            async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
                async with asyncio.timeout(timeout_s) as limit:
                    while not await self._answers(session, exited):
                        limit.reschedule(loop.time() + timeout_s - lasted.look())
                        await asyncio.wait({exited}, timeout=PROBE_INTERVAL_S)
                client = EngineClient(self.url, session, api_key)
                options = self.options
                found = await check_server(client, options.model_path, options.dtype, routes=options.routes)
                self.suspicious = tuple(found)
                self._note_shared_files()
        except EngineError as error:
            raise SglangError(f"SGLang server {self.url} broke off: {error}; its log: {self._log_file}") from None
        except TimeoutError:
            clock = lasted.by_the_clock()
            busy = f" ({clock:.0f} s by the clock, of a busy machine)" if clock > timeout_s + PROBE_TIMEOUT_S else ""
            raise SglangError(
                f"SGLang server {self.url} did not answer /health within {timeout_s:g} s{busy}; "
                f"the end of its log {self._log_file}:\n{self.log_tail()}"
            ) from None
        finally:
            exited.cancel()

    async def _answers(self, session: aiohttp.ClientSession, exited: asyncio.Task[int]) -> bool:
        """Whether /health is 200. It is not asked of a server that has exited: raises SglangError."""
        probe = asyncio.create_task(_status(session, self.url + "/health"))
        try:
            await asyncio.wait({probe, exited}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                raise SglangError(
                    f"SGLang server {self.url} exited with status {exited.result()} before it answered; "
                    f"the end of its log {self._log_file}:\n{self.log_tail()}"
                )
            return probe.result() == 200
        finally:
            probe.cancel()


async def _status(session: aiohttp.ClientSession, url: str) -> int:
    """HTTP status of a GET; 0 if nobody answers."""
    try:
        async with session.get(url) as answer:
            return answer.status
    except (aiohttp.ClientError, TimeoutError):
        return 0


def _secret_config(directory: Path, api_key: str | None) -> Path | None:
    """A configuration file for the server that holds the API key; ``directory`` is ours alone."""
    if api_key is None:
        return None
    path = directory / "secret.yaml"
    path.write_text("api-key: '" + api_key.replace("'", "''") + "'\n")
    return path


def free_port(host: str) -> int:
    """A port of ``host`` that nobody listens on, below those that the kernel gives to outgoing connections.

    The server binds it only seconds later; a port of the ephemeral range could be taken by then.
    """
    candidates = random.sample(range(20000, 32000), 64)
    for port in candidates:
        if _bindable(host, port) is None:
            return port
    raise SglangError(f"no free port on {host}: tried {len(candidates)} between 20000 and 32000")


def _require_bindable(host: str, port: int) -> None:
    problem = _bindable(host, port)
    if problem is not None:
        raise SglangError(f"SGLang server cannot listen on {host}:{port}: {problem}")


def _bindable(host: str, port: int) -> str | None:
    """None, or why no server could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None
