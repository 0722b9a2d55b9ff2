"""What the ranks of the fsdp learner's tests run. Each writes what it saw to ``NAME-rank-N.pt``."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_ranks import batches, error_of, share, spawn
from train_support import make_config, make_groups

from miles_async.train.ranks import Ranks

LEARNER = {"max_tokens_per_micro_batch": 40, "grad_reduce_timeout_s": 60.0}
CASES: dict[str, dict[str, Any]] = {
    "grpo, entropy": {"algorithm": {"entropy_coef": 0.01}, "learner": {"weight_decay": 0.1}},
    "reference, kl": {
        "algorithm": {"use_kl_loss": True, "kl_loss_coef": 0.1, "ref_update_interval": 2, "old_log_probs": "recompute"},
        "learner": {"num_steps_per_rollout": 2, "recompute_granularity": "full"},
    },
    "earlier versions": {"algorithm": {"keep_old_actor": True}, "staleness": {"max_lag": 3}},
    "ppo, critic": {
        "algorithm": {"advantage_estimator": "ppo", "lambd": 0.95},
        "critic": {"critic_lr": 1e-3, "critic_save": True},
    },
}
# all that a checkpoint can hold: a critic, whose bias is no number on the second of two ranks, and a reference that moves
SAVED: dict[str, dict[str, Any]] = {
    "algorithm": {"advantage_estimator": "ppo", "use_kl_loss": True, "kl_loss_coef": 0.1, "ref_update_interval": 2},
    "learner": LEARNER | {"num_steps_per_rollout": 2},
}
SEQUENCES = [np.arange(9), np.arange(3)]


def learning(case: str, **more: Any) -> dict[str, Any]:
    sections = CASES.get(case, {}) | more
    return sections | {"learner": LEARNER | sections.get("learner", {})}


def trained(trainer: Any, ranks: Ranks, critic: Path) -> dict[str, Any]:
    """A step for each of batches(), and what the trainer has then."""
    steps = trainer.config.learner.num_steps_per_rollout or 1
    metrics = [trainer.step(share(groups, ranks.dp_rank, ranks.dp_size, steps)) for groups in batches()]
    trainer.save_critic(critic)
    return {"metrics": metrics, "weights": trainer.export(), "log_probs": trainer.log_probs(SEQUENCES, 1.0)}


def of_cases(kind: Callable[..., Any], model: str, root: str, name: str, place: tuple[int, int]) -> dict[str, Any]:
    """What a trainer of each of CASES sees."""
    seen: dict[str, Any] = {}
    for number, case in enumerate(CASES):
        ranks = Ranks(*place, f"file://{root}/meeting-{name}-{number}")
        trainer = kind(make_config(model, **learning(case)), model, ranks)
        if number == 0:
            specs, stream = trainer.stream()
            untrained = {key: tensor.clone() for key, tensor in stream}
            assert sorted(specs) == sorted((key, t.dtype, t.shape) for key, t in untrained.items())
            seen["untrained"] = untrained
        seen[case] = trained(trainer, ranks, Path(root) / f"{name}-critic")
        trainer.close()
    return seen


def resumed_alike(
    kind: Callable[..., Any], model: str, root: Path, ranks: Ranks, sections: dict[str, Any]
) -> dict[str, Any]:
    """Save, go on; restore, go on: both ways; and the weights of the checkpoint."""
    trainer = kind(make_config(model, **sections), model, ranks)
    steps = trainer.config.learner.num_steps_per_rollout or 1
    mine = [share(groups, ranks.dp_rank, ranks.dp_size, steps) for groups in batches()]
    untrained = trainer.export()
    trainer.step(mine[0])
    trainer.save_checkpoint(root, {"position": 1})
    saved = trainer.export()
    first = trainer.step(mine[2]), trainer.export()
    assert trainer.load_checkpoint(root) == {"position": 1} and trainer.version == 1
    again = trainer.step(mine[2]), trainer.export()
    trainer.close()
    return {"untrained": untrained, "saved": saved, "first": first, "again": again}


def two_ranks(rank: int, model: str, root: str) -> None:
    from miles_async.train.fsdp_trainer import FsdpTrainer

    seen = of_cases(FsdpTrainer, model, root, "two", (rank, 2))
    where = Ranks(rank, 2, f"file://{root}/meeting-two-saved")
    seen["resumed"] = resumed_alike(FsdpTrainer, model, Path(root) / "saved-by-two", where, SAVED)
    torch.save(seen, Path(root) / f"two-rank-{rank}.pt")
    trainer = FsdpTrainer(
        make_config(model, learner=LEARNER), model, Ranks(rank, 2, f"file://{root}/meeting-two-killed")
    )
    if rank == 1:  # the other one is on its way backward, through shards that nobody has any more
        trainer._objective.loss = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    seen["peer killed"] = error_of(trainer, share(batches()[0], rank, 2))
    torch.save(seen, Path(root) / f"two-rank-{rank}.pt")


def one_rank(_: int, model: str, others: dict[str, str], root: str) -> None:
    """After ``two_ranks``. others: models that mbridge does not know."""
    from miles_async.train.fsdp_trainer import FsdpTrainer
    from miles_async.train.trainer import MegatronTrainer

    seen: dict[str, Any] = {
        "megatron": of_cases(MegatronTrainer, model, root, "megatron", (0, 1)),
        "fsdp": of_cases(FsdpTrainer, model, root, "fsdp", (0, 1)),
        "bfloat16": resumed_alike(
            FsdpTrainer,
            model,
            Path(root) / "saved-bfloat16",
            Ranks(0, 1, f"file://{root}/meeting-bfloat16"),
            learning("grpo, entropy", model={"dtype": "bfloat16"}),
        ),
    }
    trainer = FsdpTrainer(make_config(model, **SAVED), model, Ranks(0, 1, f"file://{root}/meeting-from-two"))
    seen["from two"] = (
        trainer.load_checkpoint(Path(root) / "saved-by-two"),
        trainer.export(),
        trainer.step(batches()[2]),
    )
    seen["not finite"] = not_finite(trainer)
    trainer.close()
    seen["others"] = {name: of_other(FsdpTrainer, path) for name, path in others.items()}
    seen["refused"] = each_refuses_the_others(FsdpTrainer, MegatronTrainer, model, root)
    torch.save(seen, Path(root) / "one-rank-0.pt")


def not_finite(trainer: Any) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """Weights before and after a step whose gradient is nan, and its metrics."""
    before, whole = trainer.export(), trainer._objective.loss

    def broken(*args: Any, **kwargs: Any) -> Any:
        loss, sums = whole(*args, **kwargs)
        return loss * float("nan"), sums

    trainer._objective.loss = broken
    metrics = trainer.step(batches()[0])
    trainer._objective.loss = whole
    return before, metrics, trainer.export()


def of_other(kind: Callable[..., Any], model: str) -> dict[str, Any]:
    config = make_config(
        model, learner=LEARNER | {"clip_grad": 0.0}, staleness={"max_lag": 0}
    )  # two passes are compared
    trainer = kind(config, model, Ranks(0, 1, f"file://{model}/meeting"))
    seen = {"log_probs": trainer.log_probs(SEQUENCES, 1.0), "untrained": trainer.export()}
    seen["metrics"] = trainer.step(make_groups())
    seen["weights"] = trainer.export()
    trainer.close()
    return seen


def each_refuses_the_others(fsdp: Callable[..., Any], megatron: Callable[..., Any], model: str, root: str) -> list[str]:
    """What each says to a checkpoint that the other kind wrote."""
    found = []
    for kind, place in ((megatron, "saved-by-two"), (fsdp, "saved-by-megatron")):
        trainer = kind(make_config(model), model, Ranks(0, 1, f"file://{root}/meeting-{place}"))
        try:
            trainer.load_checkpoint(Path(root) / place)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        if kind is megatron:
            trainer.save_checkpoint(Path(root) / "saved-by-megatron", {})
        trainer.close()
    return found


def seen_by_all(root: Path, model: Path, others: dict[str, str]) -> dict[str, Any]:
    """What one process saw, and under "two" what each of two did."""
    assert spawn(two_ranks, str(model), str(root)) == [0, -signal.SIGKILL]
    assert spawn(one_rank, str(model), others, str(root), ranks=1) == [0]
    seen: dict[str, Any] = torch.load(root / "one-rank-0.pt", weights_only=False)
    return seen | {"two": [torch.load(root / f"two-rank-{rank}.pt", weights_only=False) for rank in (0, 1)]}
