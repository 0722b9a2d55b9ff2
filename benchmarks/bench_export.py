"""The weights of a model that four processes hold together (TP2 x PP2), tensor by tensor on rank 0, beside a bare transfer.

1 GB of float32 weights over gloo on this machine. ``export``: every Hugging Face tensor once on rank 0, each dropped before the
next; ``snapshot``: the same written into a snapshot in shared memory; ``bare``: as many bytes as the other ranks hold sent to
rank 0, in pieces of the largest parameter. In turns, medians. ``extra_mb``: what a rank's own memory (anonymous pages) grew by
at most meanwhile. ``miles-async bench export`` (``EXPORT_LAYERS``, ``EXPORT_REPEATS``).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from miles_async.hooks.environment import environment
from miles_async.models import builtin

LAYERS, REPEATS, TIMEOUT_S = 20, 5, 600.0
LAYOUT: dict[str, Any] = {"num_ranks": 4, "tensor_parallel_size": 2, "pipeline_parallel_size": 2}
LOOK_S = 0.001
MB = 1e6


def run(layers: int | None = None, repeats: int | None = None) -> dict[str, Any]:
    """Seconds and megabytes; lists are by rank. Raises RuntimeError: a rank failed or took too long."""
    layers = layers or int(os.environ.get("EXPORT_LAYERS", LAYERS))
    repeats = repeats or int(os.environ.get("EXPORT_REPEATS", REPEATS))
    vocab = builtin.padded((builtin.PAD, builtin.EOS), 4096)
    architecture = builtin.Architecture(vocab, 1024, 3072, layers, 16, 8, 64, 1e4, 0.02, 64, "")
    with tempfile.TemporaryDirectory(dir=_shared_memory()) as root:
        builtin.write_model(architecture, Path(root) / "model", 1)
        # memory apart: what is freed goes back at once there, which takes time, so that used memory is told from kept memory
        memory = _ranks(root, "memory", 1, {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)})
        found = _ranks(root, "seconds", repeats, {})
    seconds = {name: statistics.median(one["seconds"] for one in found[0][name]) for name in found[0] if name in _WAYS}
    return {
        "model_mb": round(sum(one["share_mb"] for one in found), 1),
        "layout": LAYOUT,
        "share_mb": [one["share_mb"] for one in found],
        "largest_mb": max(one["largest_mb"] for one in found),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "of_bare": {name: round(value / seconds["bare"], 2) for name, value in seconds.items() if name != "bare"},
        "extra_mb": {name: [max(e["extra_mb"] for e in one[name]) for one in memory] for name in seconds},
        "repeats": repeats,
        "load_average": os.getloadavg()[0],
    }


def _ranks(root: str, name: str, repeats: int, variables: dict[str, str]) -> list[dict[str, Any]]:
    """What new processes with that environment have measured, by rank."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(LAYOUT["num_ranks"])]
    processes = [
        context.Process(target=_rank, args=(rank, root, name, repeats, told)) for rank, (_, told) in enumerate(pipes)
    ]
    try:
        with environment(variables):
            for process in processes:
                process.start()
        return [_heard(rank, heard) for rank, (heard, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _heard(rank: int, heard: Any) -> dict[str, Any]:
    if not heard.poll(TIMEOUT_S):
        raise RuntimeError(f"rank {rank} did not answer within {TIMEOUT_S:g} s")
    try:
        return heard.recv()
    except EOFError:
        raise RuntimeError(f"rank {rank} has failed; it says on stderr why") from None


def _rank(rank: int, root: str, meeting: str, repeats: int, told: Any) -> None:
    """One of the learner's processes."""
    from miles_async.train import cpu_shim
    from miles_async.train.quiet_megatron import quiet_megatron

    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    quiet_megatron()
    cpu_shim.install(torch.device("cpu"))
    from miles_async.config.layout import layout_of
    from miles_async.config.schema import Data, Learner, Model, RunConfig
    from miles_async.train.ranks import Ranks
    from miles_async.train.trainer import MegatronTrainer

    torch.set_num_threads(1)
    learner = Learner(**LAYOUT)
    config = RunConfig(model=Model(hf_checkpoint=f"{root}/model", device="cpu"), data=Data(), learner=learner)
    place = Ranks(rank, learner.num_ranks, f"file://{root}/{meeting}", layout_of(learner))
    trainer = MegatronTrainer(config, f"{root}/model", place)
    parameters = [p for module in trainer._policy.model.modules for p in module.parameters()]
    share, largest = (f(p.numel() * p.element_size() for p in parameters) for f in (sum, max))
    found: dict[str, Any] = {"share_mb": round(share / MB, 1), "largest_mb": round(largest / MB, 1)}
    trainer.stream()  # what is asked for once: names and shapes
    for _ in range(repeats):
        for name, way in _WAYS.items():
            found.setdefault(name, []).append(_measured(lambda way=way: way(trainer, root, share, largest)))
    told.send(found)
    told.close()


def _export(trainer: Any, *_: Any) -> None:
    for _, tensor in trainer.stream()[1]:
        del tensor  # as promised: before the next


def _snapshot(trainer: Any, root: str, *_: Any) -> None:
    from miles_async.weights.snapshot import write_tensors

    specs, tensors = trainer.stream()
    if trainer._groups.rank == 0:
        write_tensors(Path(root) / "snapshots", 1, 1, specs, tensors, f"{root}/model")
    else:
        _export(trainer)


def _bare(trainer: Any, _: str, share: int, largest: int) -> None:
    import torch
    import torch.distributed as dist

    sizes = [torch.zeros(2, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([share, largest]))
    piece = torch.empty(int(max(one[1] for one in sizes)), dtype=torch.uint8)
    for source, one in enumerate(sizes[1:], 1):
        for begin in range(0, int(one[0]), len(piece)):
            part = piece[: int(one[0]) - begin]
            if trainer._groups.rank == 0:
                dist.recv(part, source)
            elif trainer._groups.rank == source:
                dist.send(part, 0)


_WAYS: dict[str, Callable[..., None]] = {"bare": _bare, "export": _export, "snapshot": _snapshot}


def _measured(way: Callable[[], None]) -> dict[str, float]:
    """Seconds of all ranks together, and how much more memory of its own this one had at most."""
    import torch.distributed as dist

    dist.barrier()
    before = most = _anonymous()
    over = threading.Event()

    def look() -> None:
        nonlocal most
        while not over.wait(LOOK_S):
            most = max(most, _anonymous())

    looking = threading.Thread(target=look)
    looking.start()
    began = time.perf_counter()
    way()
    dist.barrier()
    seconds = time.perf_counter() - began
    over.set()
    looking.join()
    return {"seconds": seconds, "extra_mb": round((most - before) / MB, 1)}


def _anonymous() -> int:
    """Bytes of this process that are no file's, in shared memory or elsewhere."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def _shared_memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
