"""What a checkpoint costs the steps around it: in the step's place, and beside the steps (``checkpoint.async_save``).

One process trains the same batch again and again and saves after every ``every`` steps; weights are float32, so that a
checkpoint is three times the model. ``step_s``: of steps with nothing beside them; ``stood_still_s``: what a save took of the
learner's time; ``step_beside_s``: of steps during which a checkpoint was written; ``write_s``: from the copy to durable;
``seconds``: all steps and what is waited for at the end. Medians. ``miles-async bench save`` (``SAVE_LAYERS``, ``SAVE_STEPS``).
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_learner import make_groups
from miles_async.config.schema import Checkpoint, Data, Learner, Model, RunConfig, Staleness
from miles_async.models import builtin
from miles_async.train.ranks import alone
from miles_async.train.trainer import MegatronTrainer

LAYERS, STEPS, EVERY = (1, 20), 24, 6  # 67 MB and 1.0 GB of weights
WAYS = {"in the step's place": False, "beside the steps": True}


def run(layers: Sequence[int] = (), steps: int | None = None, every: int = EVERY) -> dict[str, Any]:
    """Seconds and megabytes, of each model in each way."""
    layers = layers or [int(one) for one in os.environ.get("SAVE_LAYERS", "").split()] or LAYERS
    steps = steps or int(os.environ.get("SAVE_STEPS", STEPS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        models = [_of_model(count, steps, every) for count in layers]
    finally:
        torch.set_num_threads(threads)
    return {"models": models, "steps": steps, "save_interval": every, "load_average": os.getloadavg()[0]}


def _of_model(layers: int, steps: int, every: int) -> dict[str, Any]:
    vocab = builtin.padded((builtin.PAD, builtin.EOS), 4096)
    architecture = builtin.Architecture(vocab, 1024, 3072, layers, 16, 8, 64, 1e4, 0.02, 64, "")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        builtin.write_model(architecture, root / "model", 1)
        size = (root / "model" / "model.safetensors").stat().st_size
        ways = {name: _of_way(root, steps, every, beside=beside) for name, beside in WAYS.items()}
    return {"model_mb": round(size / 1e6, 1), **ways}


def _of_way(root: Path, steps: int, every: int, *, beside: bool) -> dict[str, float]:
    config = RunConfig(
        model=Model(hf_checkpoint=str(root / "model"), device="cpu"),
        data=Data(),
        learner=Learner(lr=1e-4),
        staleness=Staleness(max_lag=1_000_000),
        checkpoint=Checkpoint(async_save=beside, keep=1),
    )
    groups = make_groups(4, 4)
    trainer = MegatronTrainer(config, str(root / "model"), alone(f"file://{root}/meeting-{beside}"))
    took: dict[str, list[float]] = {"step_s": [], "stood_still_s": [], "step_beside_s": [], "write_s": []}
    writing: Future[float] | None = None
    try:
        trainer.step(groups)
        trainer.save_checkpoint(root / "checkpoints", {})  # the first one imports
        started = time.perf_counter()
        with ThreadPoolExecutor(1) as writer:
            for step in range(1, steps + 1):
                busy = writing is not None and not writing.done()
                took["step_beside_s" if busy else "step_s"].append(_seconds(lambda: trainer.step(groups)))
                if step % every == 0:
                    began = time.perf_counter()
                    if writing is not None:
                        took["write_s"].append(writing.result())
                    if beside:
                        write = trainer.begin_checkpoint(root / "checkpoints", {})
                        writing = writer.submit(_seconds, write)
                    else:
                        trainer.save_checkpoint(root / "checkpoints", {})
                    took["stood_still_s"].append(time.perf_counter() - began)
            if writing is not None:
                took["write_s"].append(writing.result())
        whole = time.perf_counter() - started
    finally:
        trainer.close()
    return {name: round(statistics.median(found), 4) for name, found in took.items() if found} | {
        "seconds": round(whole, 2)
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
