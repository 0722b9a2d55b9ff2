"""How the learner calls a function of the user's: of its objective, its model, its batches, its reports and its policy."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hook_feed import FINE, READY, Ctx, Feed, Outcome, config, ends_the_run
from rl_step import config as algorithm_config
from rl_step import random_rows, step
from train_support import VOCAB, make_groups

from actors.learner_report import LearnerReport
from actors.runtime.compute import ComputeThread
from bus.messages import Batch
from miles_async.config.schema import Checkpoint, Learner, Model, Rollout, Staleness, Weights
from miles_async.filters.apply import BufferFilter
from miles_async.staleness.choice import make_policy
from miles_async.staleness.policies import StalenessState
from miles_async.train.batch import flatten
from miles_async.train.checked_batch import checked as checked_batch
from miles_async.train.hooks import BATCH, BEFORE_LOG_PROB, BEFORE_TRAIN_STEP
from miles_async.train.provided_bridge import bridge_maker
from miles_async.train.trainer import MegatronTrainer
from miles_async.weights.export import exported


def algorithm(key: str) -> Feed:
    def feed(path: str, _: Path) -> Outcome:
        return ends_the_run(lambda: step(algorithm_config(**{"correction": "uncorrected", key: path}), random_rows(14)))

    return feed


class Passed(Exception):
    """The function has returned, and the step goes on."""


def passed() -> None:
    raise Passed


def before_step(path: str, _: Path) -> Outcome:
    functions = [BEFORE_TRAIN_STEP.load(path)]
    stub: Any = SimpleNamespace(
        config=config(),
        version=0,
        _groups=SimpleNamespace(gather=lambda values: torch.tensor([values], dtype=torch.float64)),
        _bridge=SimpleNamespace(hf_config=SimpleNamespace(vocab_size=VOCAB)),
        _to_batch=flatten,
        _before_step=functions,
        _kept=SimpleNamespace(before_batch=lambda _: passed()),
    )

    def call() -> None:
        with contextlib.suppress(Passed):
            MegatronTrainer.step(stub, make_groups(2, 2))

    return ends_the_run(call)


def before_log_prob(path: str, _: Path) -> Outcome:
    policy = SimpleNamespace(all_logprobs=lambda sequences: sequences)
    stub: Any = SimpleNamespace(_before_log_prob=[BEFORE_LOG_PROB.load(path)], _policy=policy)
    return ends_the_run(lambda: MegatronTrainer._all_logprobs(stub, None, "current"))  # type: ignore[arg-type]


def provider(path: str, directory: Path) -> Outcome:
    def call() -> None:
        make = bridge_maker(config(model=Model(hf_checkpoint="x", model_provider=path)))
        bridge = make(str(directory), torch.float32, torch.device("cpu"))
        bridge.build()
        list(bridge.hf_tensors(torch.nn.Linear(2, 2)))

    return ends_the_run(call)


def batch(path: str, _: Path) -> Outcome:
    return ends_the_run(lambda: checked_batch(BATCH.load(path))(make_groups(2, 2), VOCAB))


def report(of: str) -> Feed:
    async def said(path: str, directory: Path) -> Outcome:
        sections = {"learner": Learner(log_function=path)} if of == "log" else {}
        sections |= {"checkpoint": Checkpoint(post_save_function=path)} if of == "save" else {}
        ctx: Any = Ctx(config(**sections))
        one = LearnerReport(ctx)
        async with ComputeThread("test") as compute:
            await one.step(Batch(step=1, group_ids=("0-7-0",), payload_keys=("a",)), {"loss": 1.0}, compute)
            await one.saved(1, directory, compute)
        lines = [(kind, f"{data['key']}: {data['cause']}") for kind, data in ctx.events]
        assert all(kind == "hook_failed" for kind, _ in lines) and len(lines) < 2
        return ("line", lines[0][1]) if lines else FINE

    return lambda path, directory: asyncio.run(said(path, directory))


def policy(path: str, _: Path) -> Outcome:
    def call() -> None:
        found = make_policy(config(staleness=Staleness(policy=path, max_lag=1)))
        found.admit(StalenessState(0, 0, 2, 0, 9))
        found.evict(READY, 4)
        found.select(READY, [group.group_id for group in READY], 5, 2)

    return ends_the_run(call)


def export(path: str, _: Path) -> Outcome:
    found = config(weights=Weights(export_function=path))
    return ends_the_run(lambda: exported(found, {"w": torch.ones(2), "v": torch.ones(2)}))


def buffer(path: str, _: Path) -> Outcome:
    return ends_the_run(lambda: BufferFilter(config(rollout=Rollout(buffer_filter=path))).evict(READY, 4))
