"""A broadcaster that has a server die in the middle of its broadcast: put in place through ``[topology]``.

Promises: once the file ``kill`` lies in the run directory, the SGLang server that is the first to be sent the second bucket of
some version is killed (kill -9) then, with the first bucket in its model; ``killed.json`` says which, and when.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from typing import Any

import psutil

from actors.broadcaster import Broadcaster
from actors.runtime.context import ActorContext
from miles_async.engines.client import EngineClient

BUCKET = 2


class KillingBroadcaster(Broadcaster):
    """See the head of this file."""

    def __init__(self, ctx: ActorContext) -> None:
        super().__init__(ctx)
        asked, told = ctx.run_dir / "kill", ctx.run_dir / "killed.json"
        send, buckets = EngineClient.update_from_distributed, Counter[str]()

        async def send_or_kill(client: EngineClient, *, version: str | None, **fields: Any) -> None:
            buckets[client.name] += 1
            if asked.exists() and not told.exists() and buckets[client.name] == BUCKET:
                server = server_process(client.url)
                os.kill(server.pid, signal.SIGKILL)
                told.write_text(json.dumps({"engine": client.name, "bucket": BUCKET, "at": time.time()}))
            if version is not None:
                buckets[client.name] = 0  # the last one of this version
            await send(client, version=version, **fields)

        EngineClient.update_from_distributed = send_or_kill  # type: ignore[method-assign]


def server_process(url: str) -> psutil.Process:
    """The main process of the SGLang server at ``url``."""
    port = url.rpartition(":")[2]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "sglang.launch_server" in words and words[words.index("--port") + 1] == port:
                return process
    raise RuntimeError(f"no server of {url} runs")
