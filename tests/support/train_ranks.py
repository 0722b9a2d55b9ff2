"""What the ranks of the learner's multi-process tests run. Each writes what it saw to ``rank-N.pt``."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from train_support import make_config, make_groups

from bus.codec import VERSIONS, pack
from bus.messages import Group
from miles_async.config import optimizer_steps
from miles_async.train.ranks import Ranks, alone

DEADLINE_S = 180.0
STEPS = 2


def spawn(target: Callable[..., None], *args: Any, ranks: int = 2) -> list[int | None]:
    """Run ``target(rank, *args)`` in so many new processes, forked as those of a run are; their exit codes, None for one
    that missed the deadline."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["actors.runtime.placement.preload_learner"])
    processes = [context.Process(target=target, args=(rank, *args)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE_S)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def batches() -> list[list[Group]]:
    """Three batches of four groups. In the second the last two groups, rank 1's share, have no trained token."""
    second = [*make_groups(2, 4, seed=1), *make_groups(2, 4, seed=5, mask_share=1.1)]
    return [make_groups(4, 4, seed=0), second, make_groups(4, 4, seed=2)]


def share(groups: list[Group], rank: int, ranks: int, steps: int = 1) -> list[Group]:
    return optimizer_steps.share(groups, rank, ranks, steps)


def sections(sharded: bool) -> dict[str, Any]:
    """With the distributed optimizer a batch is 4 optimizer steps: 2 mini-batches, twice."""
    return {
        "learner": {
            "use_distributed_optimizer": sharded,
            "max_tokens_per_micro_batch": 40,
            "grad_reduce_timeout_s": 60.0,
            **({"num_steps_per_rollout": STEPS, "ppo_epochs": 2} if sharded else {}),
        },
        "algorithm": {
            "loss_aggregation": "sample" if sharded else "token",
            "entropy_coef": 0.01,
            **({"correction": "m2po"} if sharded else {}),
        },
        "staleness": {"max_lag": 5},
    }


def train_two_ranks(rank: int, model: str, root: str) -> None:
    from miles_async.train.trainer import MegatronTrainer

    seen: dict[str, Any] = {}
    for sharded in (False, True):
        directory = Path(root) / f"sharded-{sharded}"
        trainer = MegatronTrainer(
            make_config(model, **sections(sharded)),
            model,
            Ranks(rank, 2, f"file://{root}/meeting-{sharded}"),
        )
        steps = STEPS if sharded else 1
        metrics = [trainer.step(share(groups, rank, 2, steps)) for groups in batches()]
        trainer.save_checkpoint(directory, {"sharded": sharded})
        trainer.save_hf(directory / "hf")
        weights = trainer.export()
        after = trainer.step(share(batches()[0], rank, 2, steps))
        extra = trainer.load_checkpoint(directory)
        seen[f"sharded-{sharded}"] = {
            "metrics": metrics,
            "weights": weights,
            "extra": extra,
            "resumed_alike": trainer.step(share(batches()[0], rank, 2, steps)) == after,
        }
        if sharded:
            seen["refusals"] = refusals(trainer, rank)
            seen["split_vocabulary"] = split_vocabulary(rank)
            torch.save(seen, Path(root) / f"rank-{rank}.pt")
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            seen["peer_killed"] = error_of(trainer, batches()[0])
            torch.save(seen, Path(root) / f"rank-{rank}.pt")
        trainer.close()


def refusals(trainer: Any, rank: int) -> list[str]:
    """What each rank gets when only rank 1's groups are malformed, then too old; then a good batch for both."""
    good = share(make_groups(4, 4, version=trainer.version - 1), rank, 2)
    broken = [msgspec.structs.replace(good[0], prompt_tokens=b""), *good[1:]]
    sample = msgspec.structs.replace(good[0].samples[0], loss_mask=b"\1" * len(good[0].samples[0].loss_mask))
    aged = msgspec.structs.replace(sample, versions=pack([0] * len(sample.loss_mask), VERSIONS))
    old = [msgspec.structs.replace(good[0], samples=(aged,)), *good[1:]]
    before = trainer.version
    results = [error_of(trainer, groups if rank == 1 else good, max_lag=1) for groups in (broken, old)]
    assert trainer.version == before
    return [*results, error_of(trainer, good)]


def error_of(trainer: Any, groups: list[Group], max_lag: int | None = None) -> str:
    try:
        trainer.step(groups, max_lag=max_lag)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def split_vocabulary(rank: int) -> dict[str, torch.Tensor]:
    """Log-probs, entropies and logit gradients of this rank's half of a vocabulary of 10."""
    import torch.distributed as dist

    from miles_async.train.logprobs import token_logprobs

    logits, targets = vocabulary_case()
    half = logits[:, rank * 5 : rank * 5 + 5].clone().requires_grad_()
    logprobs, entropy = token_logprobs(half, targets, temperature=0.7, entropy_grad=True, tp_group=dist.group.WORLD)
    (logprobs.sum() + 0.3 * entropy.sum()).backward()
    assert half.grad is not None
    return {"logprobs": logprobs.detach(), "entropy": entropy.detach(), "gradient": half.grad}


def vocabulary_case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(6, 10, generator=generator), torch.tensor([0, 4, 5, 9, 2, 7])


def killed_while_saving(_: int, model: str, root: str, moment: str) -> None:
    """Save once; train; save again and be killed at ``moment``: "shards" (they are written, nothing is renamed),
    "rename" (just before), or "pointer" (renamed, ``latest`` not yet)."""
    from miles_async.train import checkpoint
    from miles_async.train.trainer import MegatronTrainer

    trainer = MegatronTrainer(make_config(model), model, alone(f"file://{root}/meeting"))
    trainer.step(batches()[0])
    trainer.save_checkpoint(Path(root) / "checkpoints", {"position": 1})
    torch.save(trainer.export(), Path(root) / "weights.pt")
    trainer.step(batches()[1])

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "shards":
        checkpoint.commit = die  # pyright: ignore[reportAttributeAccessIssue]
    else:
        setattr(Path, {"rename": "rename", "pointer": "replace"}[moment], die)
    trainer.save_checkpoint(Path(root) / "checkpoints", {"position": 2})
