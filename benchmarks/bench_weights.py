"""What a weight update costs: pushes to real engines against bare broadcasts of the same bytes, and the pauses.

A push is all that the broadcaster does for one version: pause, begin, broadcast with the load into the model, end, read
the version back, continue. The bare baseline is ``torch.distributed.broadcast`` of the same bytes over the same
backend to as many processes that do nothing else. Both are run in turns in the same minute; medians.
The preparation (mapping the snapshot, cutting buckets) happens before the pause and is given by itself.
``miles-async bench weights``.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ENGINE_TIMEOUT_S = 120.0


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
    command = [sys.executable, "-m", "miles_async.engine.server", "--model-path", str(model), "--device", "cpu"]
    command += ["--dtype", "float32", "--weight-version", "0", "--port", "0", "--max-running-requests", "4"]
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


def bare_receiver(rank: int, world: int, port: int, n_bytes: int, control: Connection) -> None:
    """One receiver of the baseline: a broadcast for every message on ``control``."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, world, False, wait_for_workers=False)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    buffer = torch.empty(n_bytes, dtype=torch.uint8)
    buffer.fill_(0)
    control.send("ready")
    while control.recv() == "go":
        dist.broadcast(buffer, 0)
        control.send("done")
    dist.destroy_process_group()


class Bare:
    """Rank 0 of the baseline, and its receivers."""

    def __init__(self, stack: ExitStack, count: int, n_bytes: int) -> None:
        import torch
        import torch.distributed as dist

        # the store on a port of its own choice, which the receivers are told
        store = dist.TCPStore("127.0.0.1", 0, count + 1, True, wait_for_workers=False)  # type: ignore[attr-defined]
        context = multiprocessing.get_context("spawn")
        self._controls: list[Connection] = []
        for rank in range(1, count + 1):
            ours, theirs = context.Pipe()
            arguments = (rank, count + 1, store.port, n_bytes, theirs)
            process = context.Process(target=bare_receiver, args=arguments, daemon=True)
            process.start()
            stack.callback(process.join, 10)
            stack.callback(ours.send, "stop")
            self._controls.append(ours)
        dist.init_process_group("gloo", store=store, rank=0, world_size=count + 1)
        stack.callback(dist.destroy_process_group)
        self._broadcast = dist.broadcast
        self._buffer = torch.zeros(n_bytes, dtype=torch.uint8)
        for control in self._controls:
            control.recv()

    def run(self) -> float:
        """Seconds from the first byte sent to the last one received by all."""
        started = time.perf_counter()
        for control in self._controls:
            control.send("go")
        self._broadcast(self._buffer, 0)
        for control in self._controls:
            control.recv()
        return time.perf_counter() - started


async def measure(n_engines: int, hidden: int, layers: int, repeats: int, transport: str) -> dict[str, Any]:
    import aiohttp
    import torch

    from miles_async.config import Weights
    from miles_async.engine_client import EngineClient
    from miles_async.weights.group import Receiver, WeightGroups
    from miles_async.weights.push import bucket_limit, prepare, push
    from miles_async.weights.snapshot import MEMORY_ROOT, load_snapshot, write_snapshot

    torch.set_num_threads(1)
    memory = str(MEMORY_ROOT) if MEMORY_ROOT.exists() else None
    config = Weights(transport=transport)  # type: ignore[arg-type]
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        make_checkpoint(home / "model", hidden, layers)
        tensors = load_snapshot(home / "model")
        n_bytes = sum(tensor.nbytes for tensor in tensors.values())
        urls = [start_engine(stack, home / "model") for _ in range(n_engines)]
        bare = Bare(stack, n_engines, n_bytes)
        figures: dict[str, list[float]] = {name: [] for name in ("bare", "push", "pause", "write", "prepare", "ratio")}
        async with aiohttp.ClientSession() as session:
            receivers = [Receiver(f"engine-{i}", EngineClient(url, session)) for i, url in enumerate(urls)]
            groups = WeightGroups("gloo")
            for version in range(repeats + 1):
                started = time.perf_counter()
                path = write_snapshot(home / "snapshots", version, 0, tensors, str(home / "model"))
                written = time.perf_counter()
                update = await prepare(path, version, bucket_limit(config, groups.backend))
                prepared = time.perf_counter()
                report = await push(receivers, update, groups, config)
                if report.failed:
                    raise RuntimeError(f"a push failed: {report.failed}")
                bare_s = await asyncio.to_thread(bare.run)
                if version == 0:
                    continue  # forms the groups, touches the memory
                figures["write"].append(written - started)
                figures["prepare"].append(prepared - written)
                figures["push"].append(report.seconds)
                figures["pause"].append(statistics.median(report.paused_s.values()))
                figures["bare"].append(bare_s)
                figures["ratio"].append(bare_s / report.seconds)
            await groups.close()
    median = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "engines": n_engines,
        "transport": transport,
        "bytes": n_bytes,
        "repeats": repeats,
        "push_mb_per_s_to_each": n_bytes / median["push"] / 1e6,
        "bare_broadcast_mb_per_s_to_each": n_bytes / median["bare"] / 1e6,
        "push_speed_over_bare": median["ratio"],
        "push_speed_over_bare_range": [min(figures["ratio"]), max(figures["ratio"])],
        "push_s": median["push"],
        "paused_s": median["pause"],
        "paused_s_max": max(figures["pause"]),
        "snapshot_write_s": median["write"],
        "prepare_s": median["prepare"],
    }


def run(
    n_engines: int = 2,
    hidden: int = 512,
    layers: int = 8,
    repeats: int = 7,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Medians for a small model (where the calls count) and a larger one (where the bytes do), and by way of the disk."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = {}
    for name, size, depth, transport in (
        ("small_collective", 64, 2, "collective"),
        ("large_collective", hidden, layers, "collective"),
        ("large_disk", hidden, layers, "disk"),
    ):
        results[name] = asyncio.run(measure(n_engines, size, depth, repeats, transport))
        progress(f"{name}: {json.dumps(results[name])}")
    return results


if __name__ == "__main__":
    print(json.dumps(run(progress=lambda line: print(line, file=sys.stderr)), indent=2))
