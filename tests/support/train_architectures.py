"""What the ranks of a learner run of one architecture after the other, split in two. Rank 0 leaves what it saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from train_layouts import LAYOUTS
from train_ranks import share
from train_support import make_config, make_groups

from miles_async.config.layout import layout_of
from miles_async.train.ranks import Ranks

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {"n_routed_experts": 4, "n_shared_experts": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
# the others are in test_layouts.py and test_mixture_layouts.py, with more than this
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {**EXPERTS, **SHARED, "head_dim": 16, "use_qk_norm": True, "attention_bias": True},
}
SPLITS = ("tp2", "pp2")
STEPS = 2


def split_of(architecture: str, split: str) -> dict[str, Any]:
    """The keys of [learner] for it; with tensor parallelism a mixture has its sequences split, too, and its experts."""
    sparse = architecture in ("mixtral", "glm4_moe")
    return LAYOUTS["tp2 ep2" if sparse and split == "tp2" else "tp2 sp" if split == "tp2" else split]


def steps_of(trainer: Any, ranks: Ranks) -> dict[str, Any]:
    """What the trainer exports untrained, and what came of STEPS steps."""
    untrained = {name: tensor.clone() for name, tensor in trainer.export().items()}
    batches = [make_groups(4, 4, seed=step) for step in range(STEPS)]
    metrics = [trainer.step(share(groups, ranks.dp_rank, ranks.dp_size)) for groups in batches]
    log_probs = trainer.log_probs([torch.arange(9).numpy(), torch.arange(3).numpy()], 1.0)
    return {"untrained": untrained, "metrics": metrics, "log_probs": log_probs, "weights": trainer.export()}


def train_all(rank: int, root: str) -> None:
    from miles_async.train.trainer import MegatronTrainer

    seen: dict[tuple[str, str], Any] = {}
    for architecture in ARCHITECTURES:
        for split in SPLITS:
            model = f"{root}/{architecture}"
            config = make_config(model, learner={"grad_reduce_timeout_s": 60.0, **split_of(architecture, split)})
            meeting = f"file://{root}/meeting-{architecture}-{split}"
            ranks = Ranks(rank, config.learner.num_ranks, meeting, layout_of(config.learner))
            trainer = MegatronTrainer(config, model, ranks)
            seen[architecture, split] = steps_of(trainer, ranks)
            trainer.close()
    if rank == 0:
        torch.save(seen, Path(root) / "architectures.pt")
