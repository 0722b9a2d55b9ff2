"""An optimizer step of a split model with its sequences in one row ("thd"), and in rows as wide as the longest ("bshd").

Qwen3, 4 layers of 256, 512 tokens of vocabulary, float32, one thread a process: 64 responses to 8 prompts of 32 to 64 tokens,
lognormal with a median of 60 and a deviation of 1 (at most 512), micro-batches of at most 4,096 tokens; and 128 short ones
(a median of 6, at most 12). Both formats of a layout in turns, in the same processes; medians of the CPU time of all processes.
``miles-async bench packing`` (``PACKING_STEPS``, ``PACKING_LAYOUTS``).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from miles_async.models import builtin

STEPS, TIMEOUT_S, VOCAB = 5, 900.0, 512
FORMATS = ("bshd", "thd")
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"num_ranks": 2, "tensor_parallel_size": 2},
    "pp2": {"num_ranks": 2, "pipeline_parallel_size": 2},
    "cp2": {"num_ranks": 2, "context_parallel_size": 2},
    "full recompute": {"num_ranks": 1, "recompute_granularity": "full"},
}
LENGTHS = {
    "long tail": {"n_groups": 8, "n_samples": 8, "median": 60, "longest": 512},
    "short": {"n_groups": 16, "n_samples": 8, "median": 6, "longest": 12},
}


def run(steps: int | None = None, layouts: list[str] | None = None) -> dict[str, Any]:
    """By lengths and layout: CPU seconds of a step, tokens that are computed, how far the losses of a step are apart. Raises
    RuntimeError: a process failed or took too long."""
    steps = steps or int(os.environ.get("PACKING_STEPS", STEPS))
    layouts = layouts or [name for name in os.environ.get("PACKING_LAYOUTS", ",".join(LAYOUTS)).split(",") if name]
    vocab = builtin.padded((builtin.PAD, builtin.EOS), VOCAB)
    with tempfile.TemporaryDirectory() as root:
        builtin.write_model(
            builtin.Architecture(vocab, 256, 1024, 4, 8, 4, 32, 1e4, 0.02, 1024, ""), Path(root) / "model", 1
        )
        found = {name: _layout(root, name, steps) for name in layouts}
    tables = {lengths: {name: of[lengths] for name, of in found.items()} for lengths in LENGTHS}
    return {**tables, "steps": steps, "load_average": os.getloadavg()[0]}


def _layout(root: str, name: str, steps: int) -> dict[str, Any]:
    context, ranks = multiprocessing.get_context("spawn"), LAYOUTS[name]["num_ranks"]
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    processes = [context.Process(target=_rank, args=(rank, root, name, steps, pipes[rank][1])) for rank in range(ranks)]
    try:
        for process in processes:
            process.start()
        for _, told in pipes:
            told.close()
        of_ranks = [_heard(rank, heard) for rank, (heard, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return {lengths: _row([of[lengths] for of in of_ranks]) for lengths in LENGTHS}


def _heard(rank: int, heard: Any) -> dict[str, Any]:
    try:
        if heard.poll(TIMEOUT_S):
            return heard.recv()
    except EOFError:
        raise RuntimeError(f"rank {rank} has failed; it says on stderr why") from None
    raise RuntimeError(f"rank {rank} did not answer within {TIMEOUT_S:g} s")


def _row(of_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """CPU seconds are of all processes together, the rest is the same on each."""
    first = of_ranks[0]
    seconds = {
        of: statistics.median(map(sum, zip(*(rank[of]["cpu_s"] for rank in of_ranks), strict=True))) for of in FORMATS
    }
    return {
        "cpu_s": {of: round(value, 4) for of, value in seconds.items()},
        "thd_times_as_fast": round(seconds["bshd"] / seconds["thd"], 2),
        "real_tokens": first["thd"]["real"],
        "computed_tokens": {of: first[of]["computed"] for of in FORMATS},
        "micro_batches": {of: first[of]["micro_batches"] for of in FORMATS},
        "largest_loss_difference": max(
            abs(a - b) for a, b in zip(*(first[of]["losses"] for of in FORMATS), strict=True)
        ),
    }


def _rank(rank: int, root: str, name: str, steps: int, told: Any) -> None:
    """One of the learner's processes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from benchmarks.lib.long_tail import long_tailed_groups
    from miles_async.config.layout import layout_of
    from miles_async.config.schema import Data, Learner, Model, RunConfig, Staleness
    from miles_async.train.batch import flatten
    from miles_async.train.ranks import Ranks
    from miles_async.train.trainer import MegatronTrainer

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for lengths, shape in LENGTHS.items():
        groups = long_tailed_groups(vocab=VOCAB, **shape)
        found[lengths] = {of: {"cpu_s": [], "losses": []} for of in FORMATS}
        for turn in range(2):
            for of, seen in found[lengths].items():
                learner = Learner(lr=1e-4, max_tokens_per_micro_batch=4096, qkv_format=of, **LAYOUTS[name])
                config = RunConfig(
                    model=Model(hf_checkpoint=f"{root}/model", device="cpu"),
                    data=Data(),
                    learner=learner,
                    staleness=Staleness(max_lag=1_000_000),
                )
                meeting = f"file://{root}/{name.replace(' ', '-')}-{lengths.replace(' ', '-')}-{of}-{turn}"
                place = Ranks(rank, learner.num_ranks, meeting, layout_of(learner))
                trainer = MegatronTrainer(config, f"{root}/model", place)
                micros = trainer._policy.model.micro_batches(flatten(groups, VOCAB).sequences)
                seen["micro_batches"] = len(micros)
                seen["real"] = int(sum(micro.widths.sum() for micro in micros))
                seen["computed"] = seen["real"] if of == "thd" else int(sum(micro.tokens.size for micro in micros))
                for step in range(steps + 1):
                    began = time.process_time()
                    metrics = trainer.step(groups)
                    if step:  # the first one warms up
                        seen["cpu_s"].append(time.process_time() - began)
                        seen["losses"].append(metrics["loss"])
                trainer.close()
    told.send(found)
    told.close()


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
