"""What the ranks of a learner with adapters run, in one layout after the other. Rank 0 leaves what it saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from train_layouts import LAYOUTS as SPLITS
from train_ranks import share, spawn
from train_support import make_config, make_groups

from miles_async.config.layout import layout_of
from miles_async.train.ranks import Ranks

LORA = {"lora_rank": 4, "lora_alpha": 8.0, "lr": 1e-2, "max_tokens_per_micro_batch": 120, "grad_reduce_timeout_s": 60.0}
LAYOUTS = ("dp2", "tp2", "tp2 sp", "pp2", "cp2")
# of a mixture, whose experts have none
LORA_OF_MIXTURE = LORA | {"lora_targets": ["linear_qkv", "linear_proj"]}
LAYOUTS_OF_MIXTURE = ("ep2", "tp2 ep2")
QUERIES, KEYS = ("linear_q_down_proj", "linear_q_up_proj"), ("linear_kv_down_proj", "linear_kv_up_proj")
LORA_OF_LATENT = LORA | {"lora_targets": [*QUERIES, *KEYS, "linear_proj"]}
LAYOUTS_OF_LATENT = ("tp2 ep2", "pp2")
TOKENS = [torch.arange(9).numpy(), torch.arange(3).numpy()]


def batch(step: int, ranks: Ranks) -> Any:
    return share(make_groups(4, 4, seed=step), ranks.dp_rank, ranks.dp_size)


def seen_of(trainer: Any, ranks: Ranks, directory: Path) -> dict[str, Any]:
    """Two steps from where the trainer is, what came of them, and the adapters below ``directory``."""
    metrics = [trainer.step(batch(trainer.version, ranks)) for _ in range(2)]
    trainer.save_adapters(directory)
    return {"metrics": metrics, "log_probs": trainer.log_probs(TOKENS, 1.0), "weights": trainer.export()}


def go_on_in_layouts(rank: int, model: str, root: str, names: tuple[str, ...], lora: dict[str, Any]) -> None:
    """From the checkpoint ``one`` below ``root``, which another process wrote alone; and a checkpoint of each."""
    from miles_async.train.trainer import MegatronTrainer

    seen: dict[str, Any] = {}
    for name in names:
        plain = name.replace(" ", "-")
        config = make_config(model, learner={**lora, **SPLITS[name]})
        ranks = Ranks(rank, config.learner.num_ranks, f"file://{root}/meeting-{plain}", layout_of(config.learner))
        trainer = MegatronTrainer(config, model, ranks)
        trainer.save_adapters(Path(root) / f"{plain}-untrained")
        trainer.load_checkpoint(Path(root) / "one")
        seen[name] = seen_of(trainer, ranks, Path(root) / f"{plain}-adapters")
        trainer.save_checkpoint(Path(root) / f"{plain}-checkpoint", {})
        trainer.close()
    if rank == 0:
        torch.save(seen, Path(root) / "lora-rank-0.pt")


def gone_on(root: Path, model: Path, names: tuple[str, ...], lora: dict[str, Any]) -> dict[str, Any]:
    """What rank 0 saw in each of the layouts, all of which have as many ranks."""
    ranks = SPLITS[names[0]]["num_ranks"]
    assert spawn(go_on_in_layouts, str(model), str(root), names, lora, ranks=ranks) == [0] * ranks
    found: dict[str, Any] = torch.load(root / "lora-rank-0.pt", weights_only=False)
    return found


def adapters_in(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter_model.safetensors")
