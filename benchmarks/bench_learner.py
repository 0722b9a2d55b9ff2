"""One optimizer step of the Megatron learner against the same step with a transformers model and AdamW.

Both get the same random groups (32 prompts of 4 tokens, 8 responses of 1 to 12) and the same loss on the same 75k-parameter
Qwen3, one thread, float32 on the CPU; transformers gets padded micro-batches, planned for it, while the learner packs its own
(train/packed.py). Steps alternate, medians of the CPU time of the process, which other work on the machine leaves nearly as it
is. The learner's step includes what the other leaves out: reading the wire format, refusing lag, planning, metrics.
``miles-async bench learner``.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.random_groups import random_groups
from bus.messages import Group
from miles_async.config.schema import Data, Learner, Model, RunConfig, Staleness
from miles_async.models.builtin import make_model
from miles_async.rl.reduce import Totals
from miles_async.rl.terms import LossTerms
from miles_async.train.batch import MicroBatch, flatten, micro_batches
from miles_async.train.intake import Admitted
from miles_async.train.objective import Objective
from miles_async.train.ranks import alone
from miles_async.train.share import MicroShare, make_share, micro_share
from miles_async.train.trainer import MegatronTrainer

VOCAB = 16
LR = 1e-3


def make_groups(n_groups: int = 32, n_samples: int = 8, prompt: int = 4, longest: int = 12) -> list[Group]:
    rng = np.random.default_rng(0)
    return random_groups(
        rng,
        n_groups,
        n_samples,
        prompt=lambda: rng.integers(3, VOCAB, prompt),
        length=lambda: int(rng.integers(1, longest + 1)),
        first_token=1,
        vocab=VOCAB,
        log_prob=-2.8,
    )


class TransformersStep:
    """Forward, the same loss, backward, clipping, AdamW on the transformers model; the batch is prepared beforehand."""

    def __init__(self, path: Path, groups: list[Group], config: RunConfig):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
        self.objective = Objective(config)
        batch = flatten(groups, VOCAB)
        n_samples = float(len(batch.rewards))
        totals = Totals(float(batch.sequences.mask.sum()), n_samples)
        admitted = Admitted(batch, totals, n_samples, False, {})
        share = make_share(admitted, self.objective, 0, current=None, reference=None)
        device = torch.device("cpu")
        self.inputs: list[tuple[MicroBatch, MicroShare]] = [
            (micro, micro_share(share, micro, device))
            for micro in micro_batches(batch.sequences, config.learner.max_tokens_per_micro_batch)
        ]

    def __call__(self) -> float:
        self.optimizer.zero_grad()
        total = 0.0
        for micro, part in self.inputs:
            logits = self.model(input_ids=torch.from_numpy(micro.tokens), use_cache=False).logits
            chosen = logits.transpose(0, 1).flatten(0, 1)[torch.from_numpy(micro.positions)].float()
            distribution = chosen.log_softmax(-1)
            logprobs = distribution.gather(-1, torch.from_numpy(micro.targets)[:, None])[:, 0]
            with torch.no_grad():
                entropy = -(distribution.exp() * distribution).sum(-1)
            terms = LossTerms(
                logprobs=logprobs,
                old=part.behaviour,
                behaviour=part.behaviour,
                advantages=part.advantages,
                sample_index=part.sample_index,
                versions=part.versions,
                version=0,
                mask=torch.ones_like(part.behaviour),
            )
            loss, _ = self.objective.loss(terms, part.weights, entropy=entropy)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return total


def run(steps: int = 100, warm_up: int = 5) -> dict[str, Any]:
    """Medians over ``steps`` alternating steps. Seconds: CPU for steps, else wall clock; tokens are trained response tokens."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as directory:
            return _measure(Path(directory), steps, warm_up)
    finally:
        torch.set_num_threads(threads)


def _measure(root: Path, steps: int, warm_up: int) -> dict[str, Any]:
    make_model("builtin:digits", root / "model", seed=1)
    config = RunConfig(
        model=Model(hf_checkpoint=str(root / "model"), device="cpu"),
        data=Data(prompt_data="builtin:repeat"),
        learner=Learner(lr=LR),
        staleness=Staleness(max_lag=1_000_000),
    )
    groups = make_groups()
    trainer = MegatronTrainer(config, str(root / "model"), alone(f"file://{root / 'meeting'}"))
    try:
        reference = TransformersStep(root / "model", groups, config)
        ours: list[float] = []
        theirs: list[float] = []
        gap, metrics = 0.0, dict[str, float]()
        for step in range(warm_up + steps):
            mine, metrics = _timed(lambda: trainer.step(groups), time.process_time)
            other, loss = _timed(reference, time.process_time)
            if step >= warm_up:
                ours.append(mine)
                theirs.append(other)
            gap = max(gap, abs(metrics["loss"] - loss))
        tokens = metrics["n_tokens"]
        export = statistics.median(_timed(trainer.export)[0] for _ in range(10))
        saves = [_timed(lambda: trainer.save_checkpoint(root / "checkpoints", {}))[0] for _ in range(5)]
    finally:
        trainer.close()
    padded = sum(micro.tokens.size for micro, _ in reference.inputs)
    return {
        "samples": metrics["n_samples"],
        "tokens": tokens,
        "padded_tokens": padded,
        "micro_batches": len(reference.inputs),
        "learner_step_s": statistics.median(ours),
        "transformers_step_s": statistics.median(theirs),
        "learner_tokens_per_s": tokens / statistics.median(ours),
        "transformers_tokens_per_s": tokens / statistics.median(theirs),
        "speedup": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "largest_loss_difference": gap,
        "export_s": export,
        "checkpoint_first_s": saves[0],
        "checkpoint_s": statistics.median(saves[1:]),
        "torch": torch.__version__,
        "threads": 1,
        "load": os.getloadavg(),
    }


def _timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    started = clock()
    result = work()
    return clock() - started, result


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
