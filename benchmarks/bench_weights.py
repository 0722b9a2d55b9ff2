"""What a weight update costs: pushes to real engines against bare broadcasts of the same bytes; pauses; the learner's stall.

    snapshot write (the learner waits) ─► prepare: map, cut, ask who answers; a delta ─► push: pause, send, load, go on

A push is all that the broadcaster does for one version: pause, begin, broadcast with the load into the model, end, read
the version back, continue. The bare baseline is ``torch.distributed.broadcast`` of the same bytes over gloo to as many
processes that do nothing else, into memory that they have used before. Every version goes by every transport and by the
baseline, by turns first; medians. ``paused_share``: of the time from the snapshot's first byte to the last engine's going on.
``disk_delta``: mirrors in this process, weights that move by a millionth of themselves. ``miles-async bench weights``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

if TYPE_CHECKING:
    import torch

PIECE_BYTES = 256 << 20  # of the bare broadcast: its receivers need not have room for everything


def make_checkpoint(directory: Path, hidden: int, layers: int) -> None:
    """A random float32 Qwen3 of ``layers`` layers (about 12 x hidden^2 weights each)."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        max_position_embeddings=256,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)


def start_engine(stack: ExitStack, model: Path) -> str:
    """The URL of a new embedded engine that serves ``model`` until the stack is closed."""
    command = [
        sys.executable,
        "-m",
        "miles_async.engines.embedded.server",
        "--model-path",
        str(model),
        "--device",
        "cpu",
    ]
    command += ["--dtype", "float32", "--weight-version", "0", "--port", "0", "--max-running-requests", "4"]
    command += ["--weight-roots", str(model.parent)]  # where the snapshots are
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, bufsize=1, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    stack.callback(process.wait, 10)
    stack.callback(process.kill)
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return line.split()[-1]
    raise RuntimeError("an engine ended before it was ready")


def bare_receiver(rank: int, world: int, port: int, control: Connection) -> None:
    """One receiver of the baseline: for every message on ``control`` as many bytes as each of its numbers says."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, world, False, wait_for_workers=False)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    buffer = torch.zeros(PIECE_BYTES, dtype=torch.uint8)
    control.send("ready")
    while sizes := control.recv():
        for size in sizes:
            dist.broadcast(buffer[:size], 0)
        control.send("done")
    dist.destroy_process_group()


class Bare:
    """Rank 0 of the baseline, and its receivers."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        import torch.distributed as dist

        # the store on a port of its own choice, which the receivers are told
        store = dist.TCPStore("127.0.0.1", 0, count + 1, True, wait_for_workers=False)  # type: ignore[attr-defined]
        context = multiprocessing.get_context("spawn")
        self._controls: list[Connection] = []
        for rank in range(1, count + 1):
            ours, theirs = context.Pipe()
            arguments = (rank, count + 1, store.port, theirs)
            process = context.Process(target=bare_receiver, args=arguments, daemon=True)
            process.start()
            stack.callback(process.join, 10)
            stack.callback(ours.send, [])
            self._controls.append(ours)
        dist.init_process_group("gloo", store=store, rank=0, world_size=count + 1)
        stack.callback(dist.destroy_process_group)
        self._broadcast = dist.broadcast
        for control in self._controls:
            control.recv()

    def run(self, data: Sequence[torch.Tensor]) -> float:
        """Send it (uint8); seconds from the first byte sent to the last one received by all."""
        pieces = [piece for part in data for piece in part.split(PIECE_BYTES)]
        started = time.perf_counter()
        for control in self._controls:
            control.send([piece.numel() for piece in pieces])
        for piece in pieces:
            self._broadcast(piece, 0)
        for control in self._controls:
            control.recv()
        return time.perf_counter() - started


Figures = dict[str, list[float]]
WARM_UP = 3  # versions: the groups are formed, every buffer has its pages
COUNTS = (1, 2, 4)  # engines
SIZES = {"50MB": (512, 4, 9), "1GB": (2048, 5, 5)}  # hidden size, layers, repeats
DEADLINE_S = 300.0
STEP = 1e-6  # of every weight, relatively, between two versions


async def measure(n_engines: int, hidden: int, layers: int, repeats: int, transports: Sequence[str]) -> dict[str, Any]:
    """Medians of one size for ``n_engines``, by transport."""
    import torch

    from miles_async.weights.snapshot import MEMORY_ROOT, load_snapshot

    torch.set_num_threads(1)
    memory = str(MEMORY_ROOT) if MEMORY_ROOT.exists() else None
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        make_checkpoint(home / "model", hidden, layers)
        tensors = load_snapshot(home / "model")
        n_bytes = sum(tensor.nbytes for tensor in tensors.values())
        urls = [start_engine(stack, home / "model") for _ in range(n_engines)]
        bare = Bare(stack, n_engines)
        if "disk_delta" in transports:
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        figures: dict[str, Figures] = {transport: defaultdict(list) for transport in transports}
        async with pushes(urls, home, transports, bare) as push_version:
            for version in range(repeats + WARM_UP):
                for transport in transports:
                    timed = await push_version(transport, version, tensors)
                    if version >= WARM_UP:
                        for name, value in timed.items():
                            figures[transport][name].append(value)
                if "disk_delta" in transports:
                    for tensor in tensors.values():
                        tensor += STEP * tensor * torch.randn_like(tensor)
    return {transport: summary(n_bytes, values) for transport, values in figures.items()}


Push = Callable[[str, int, "dict[str, torch.Tensor]"], Awaitable[dict[str, float]]]


@contextlib.asynccontextmanager
async def pushes(urls: list[str], home: Path, transports: Sequence[str], bare: Bare) -> AsyncIterator[Push]:
    """A function that brings all engines to a version by a transport and says what each part took, in seconds."""
    from miles_async.config.schema import Data, Model, RunConfig, Weights
    from miles_async.engines.lean_client import LeanEngineClient
    from miles_async.weights.delta_mirror import Mirror
    from miles_async.weights.push import probe
    from miles_async.weights.snapshot import prune, write_snapshot
    from miles_async.weights.transports.base import Transport
    from miles_async.weights.transports.table import make_transport
    from miles_async.weights.update import Receiver

    names = [f"engine-{i}" for i in range(len(urls))]
    async with AsyncExitStack() as stack:
        clients = [LeanEngineClient(url, name=name) for name, url in zip(names, urls, strict=True)]
        for client in clients:
            stack.callback(client.close)
        receivers = [Receiver(client.name, client) for client in clients]
        ways: dict[str, Transport] = {}
        for transport in transports:
            weights = Weights(transport=transport, backend="gloo", timeout_s=DEADLINE_S, delta_dir=str(home / "shared"))
            run = RunConfig(model=Model(hf_checkpoint=str(home / "model")), data=Data(), weights=weights)
            ways[transport] = make_transport(run, home)
            stack.push_async_callback(ways[transport].close)
        for name in names if "disk_delta" in transports else ():
            following = asyncio.create_task(Mirror(name, home / "shared", lambda _: home / "local").follow())
            stack.callback(following.cancel)

        async def one(transport: str, version: int, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
            way = ways[transport]
            started = time.perf_counter()
            path = write_snapshot(home / "snapshots", version, 0, tensors, str(home / "model"))
            written = time.perf_counter()
            asked = receivers if way.ASKS_FIRST else []
            update, silent = await asyncio.gather(way.prepare(path, (0, version)), probe(asked, way.config.weights))
            if silent:
                raise RuntimeError(f"engines that do not answer: {silent}")
            timed = {}
            if way.COPIED_BY:
                timed["delta_bytes"] = way.metrics()["weights/delta_bytes"]
                timed["delta_write_s"] = time.perf_counter() - written
                update = replace(update, copies=(await way.deliver(names)).paths)
            prepared = time.perf_counter()
            flat = [bucket.flat for bucket in update.buckets]
            # whoever is first warms the caches
            before = await asyncio.to_thread(bare.run, flat) if version % 2 else None
            begun = time.perf_counter()
            report = await way.push(receivers, update, probed=True)
            if report.failed:
                raise RuntimeError(f"a push failed: {report.failed}")
            paused, push_s = max(report.paused_s.values()), time.perf_counter() - begun
            bare_s = before or await asyncio.to_thread(bare.run, flat)
            prune(home / "snapshots", 1)  # several of 1 GB would not fit
            return timed | {
                "snapshot_write_s": written - started,
                "prepare_s": prepared - written,
                "push_s": report.seconds,
                "paused_s": paused,
                "paused_share": paused / (prepared - started + push_s),
                "bare_s": bare_s,
                "of_bare": bare_s / report.seconds,
            }

        yield one


def summary(n_bytes: int, figures: Figures) -> dict[str, Any]:
    """Medians; the ratio that is aimed at with its range, too."""
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "bytes": n_bytes,
        "repeats": len(figures["push_s"]),
        "push_mb_per_s_to_each": n_bytes / medians["push_s"] / 1e6,
        "bare_mb_per_s_to_each": n_bytes / medians["bare_s"] / 1e6,
        "of_bare_range": [min(figures["of_bare"]), max(figures["of_bare"])],
        **medians,
    }


def run(
    sizes: Sequence[str] = tuple(SIZES),
    counts: Sequence[int] = COUNTS,
    progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Every size to every number of engines, by every transport (``disk_delta``: of the small size)."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()}
    for size in sizes:
        hidden, layers, repeats = SIZES[size]
        transports = ("collective", "disk", "disk_delta") if size == "50MB" else ("collective", "disk")
        for count in counts:
            found = uvloop.run(measure(count, hidden, layers, repeats, transports))
            results[f"{size}_{count}_engines"] = found
            progress(f"{size}, {count} engines: {json.dumps(found)}")
    return results | {"load_after": os.getloadavg()}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
