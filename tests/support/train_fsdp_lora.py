"""What each of two ranks with PEFT's adapters in their shards sees. Written to ``lora-rank-N.pt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from train_ranks import batches, share
from train_support import make_config

from miles_async.train.ranks import Ranks

SECTIONS: dict[str, dict[str, Any]] = {
    "algorithm": {"use_kl_loss": True, "kl_loss_coef": 0.1},
    "learner": {"train_backend": "fsdp", "lora_rank": 3, "lora_alpha": 6.0, "lr": 1e-2, "grad_reduce_timeout_s": 60.0},
}


def two_ranks(rank: int, model: str, root: str) -> None:
    from miles_async.train.fsdp_trainer import FsdpTrainer

    trainer = FsdpTrainer(make_config(model, **SECTIONS), model, Ranks(rank, 2, f"file://{root}/meeting-lora"))
    metrics = [trainer.step(share(groups, rank, 2)) for groups in batches()]
    trainer.save_checkpoint(Path(root) / "two" / "checkpoints", {})
    trainer.save_adapters(Path(root) / "adapters-of-two")
    torch.save({"metrics": metrics, "weights": trainer.export()}, Path(root) / f"lora-rank-{rank}.pt")
    trainer.close()
