"""The embedded engine as an HTTP server: ``serve`` in this process, or ``python -m miles_async.engines.embedded.server``.

Promises: the URL is announced only once the server answers there; when ``stop`` is set, requests under way are aborted
with the output they have, and ``serve`` returns within seconds; a failed engine makes ``serve`` raise. Signals
belong to the caller (the command line turns SIGINT and SIGTERM into ``stop``).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from miles_async.config.schema import ConfigError
from miles_async.config.secrets import resolve
from miles_async.engines.embedded.app import EngineApp
from miles_async.engines.embedded.cache import align
from miles_async.engines.embedded.checkpoint import ModelConfig, ModelFilesError, read_config, read_tensors
from miles_async.engines.embedded.control import WeightControl
from miles_async.engines.embedded.frontend import Frontend
from miles_async.engines.embedded.model import Decoder, WeightError
from miles_async.engines.embedded.sampling_params import RequestLimits
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.engines.embedded.text import TextCodec
from miles_async.http.address import url_of
from miles_async.http.heap import settle_memory
from miles_async.http.limits import answer_at_once
from miles_async.http.refusals import Refusals
from miles_async.http.server import HttpServer

KEEP_ALIVE_S = 600  # an idle connection costs nothing; closing one under a client's next request costs a retry
STOP_TIMEOUT_S = 5
CACHE_SHARE = {"cpu": 0.25, "cuda": 0.8}  # of the free memory

_log = logging.getLogger(__name__)


class ServeError(RuntimeError):
    """The server cannot start, in one line."""


async def serve(
    model_path: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    max_running_requests: int = 256,
    context_length: int | None = None,
    weight_version: str = "default",
    api_key: str | None = None,
    weight_roots: Sequence[Path] = (),
    refusals: Refusals | None = None,
    on_ready: Callable[[str], Awaitable[None] | None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve a checkpoint until ``stop`` is set.

    device: auto, cpu, cuda, cuda:N. dtype: auto (the checkpoint's), float32, bfloat16, float16. port 0: any free one.
    weight_roots: directories from which it may be told to load weights; its model's own is one in any case.
    refusals: where requests that are refused get counted.
    on_ready: called (and awaited) with the URL once it answers. Raises ServeError or ModelFilesError at start, and
    RuntimeError if the engine fails later.
    """
    stop = stop or asyncio.Event()
    listener = _listen(host, port)
    try:
        config = read_config(model_path)
        where = _device(device)
        model = load_model(model_path, config, where, dtype)
    except BaseException:
        listener.close()
        raise
    codec = TextCodec(model_path)
    context = min(context_length or config.max_positions, config.max_positions)
    max_tokens = cache_tokens(config, model.dtype, where, max_running_requests * align(context + 1))
    if max_tokens < context:
        _log.warning("context length %d cut to %d: the cache holds no more", context, max_tokens)
        context = max_tokens
    scheduler = Scheduler(model, codec, max_running=max_running_requests, max_tokens=max_tokens, version=weight_version)
    limits = RequestLimits(config.vocab_size, context, codec.available, config.mixture is not None)
    frontend = Frontend(scheduler, limits, codec, codec.eos_token_ids)
    weights = WeightControl(frontend.compute, model, model_path, weight_version, frontend.abort_all, weight_roots)
    info = {
        "model_path": model_path,
        "tokenizer_path": model_path,
        "device": str(where),
        "dtype": str(model.dtype).removeprefix("torch."),
        "context_length": context,
        "max_running_requests": max_running_requests,
        "max_total_num_tokens": max_tokens,
        "weight_version": weight_version,
        "tp_size": 1,
        "dp_size": 1,
        "version": _version(),
        "engine": "miles_async embedded",
        "enable_return_routed_experts": limits.has_experts,
    }
    refusals = Refusals() if refusals is None else refusals
    server = HttpServer(
        EngineApp(frontend, weights, config, info, api_key, refusals),
        refusals,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    gc.collect()
    settle_memory()
    frontend.compute.start()
    try:
        await _run(server, listener, host, frontend, on_ready, stop)
    finally:
        weights.close()
        await frontend.compute.close()
    if frontend.failure is not None:
        raise RuntimeError(f"the engine failed: {frontend.failure}") from frontend.failure


def load_model(path: str, config: ModelConfig, device: torch.device, dtype: str = "auto") -> Decoder:
    """The checkpoint's model with its weights. Raises ModelFilesError."""
    kind = getattr(torch, config.dtype if dtype == "auto" else dtype, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise ServeError(f"dtype {dtype!r} is not one of auto, float32, bfloat16, float16")
    model = Decoder(config, dtype=kind, device=device)
    try:
        model.load(read_tensors(path), complete=True)
    except WeightError as error:
        raise ModelFilesError(f"{path}: {error}") from None
    return model


def cache_tokens(config: ModelConfig, dtype: torch.dtype, device: torch.device, wanted: int) -> int:
    """How many positions of keys and values to allow: ``wanted``, or what a share of the free memory holds."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    return max(1, min(wanted, int(free * CACHE_SHARE[device.type]) // position))


async def _run(
    server: HttpServer,
    listener: socket.socket,
    host: str,
    frontend: Frontend,
    on_ready: Callable[[str], Awaitable[None] | None] | None,
    stop: asyncio.Event,
) -> None:
    """The server's life: start, announce, wait for the end (asked for, or the engine's failure), wind down."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    started = asyncio.create_task(server.ready.wait())
    ending = [asyncio.create_task(stop.wait()), asyncio.create_task(frontend.failed.wait())]
    try:
        await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
        if on_ready is not None and started.done():
            announced = on_ready(url_of(host, listener.getsockname()[1]))
            if inspect.isawaitable(announced):
                await announced
        await asyncio.wait({serving, *ending}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        frontend.abort_all()
        server.should_exit = True
        for task in (started, *ending):
            task.cancel()
        await serving


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error
        raise ServeError(f"cannot listen on {host}:{port}: {reason}") from None
    answer_at_once(listener)
    return listener


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ServeError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N") from None
    if device.type not in CACHE_SHARE or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ServeError(f"device {name!r} is not there: torch {torch.__version__} sees no such device")
    return device


def _version() -> str:
    try:
        return version("miles-async")
    except PackageNotFoundError:
        return "unknown"


def main(argv: list[str] | None = None) -> int:
    """The command line; flags as SGLang's where they mean the same. Exit code 2: it cannot start."""
    parser = argparse.ArgumentParser(prog="miles_async.engines.embedded.server", description=__doc__)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000, help="0: any free one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-running-requests", type=int, default=256)
    parser.add_argument("--context-length", type=int, default=None)
    parser.add_argument("--weight-version", default="default")
    parser.add_argument("--api-key", default=None, help='"env:NAME" takes it from the environment')
    parser.add_argument(
        "--weight-roots", nargs="+", type=Path, default=[], metavar="DIR", help="where it may load weights from"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the computation on a CPU")
    options = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        options["api_key"] = resolve("--api-key", options["api_key"])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.pop("threads"))
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve_until_signal(options))
    except (ServeError, ModelFilesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve_until_signal(options: dict[str, Any]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(
        options.pop("model_path"), **options, stop=stop, on_ready=lambda url: print(f"ready at {url}", flush=True)
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
