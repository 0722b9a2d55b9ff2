"""A checkpoint of a run as a Hugging Face directory, without the run.

Promises: the checkpoint is verified first and stays as it is; the run may be alive; what is written is what the run's own
export at that version would be, bit for bit; it is there as a whole or not at all, and replaces nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from miles_async.config import toml
from miles_async.config.schema import RunConfig
from miles_async.models import builtin
from miles_async.train import checkpoint, hooks
from miles_async.train.bridge import ModelBridge
from miles_async.train.checkpoint import CheckpointError
from miles_async.train.hf_export import save_hf
from miles_async.train.lone_model import lone_model


@dataclass(frozen=True)
class Found:
    """A checkpoint, the configuration of its run, and the Hugging Face directory that training began with."""

    path: Path
    version: int
    config: RunConfig
    model: Path
    verified: bool  # False: an earlier version wrote it, without checksums


def find(source: Path) -> Found:
    """The checkpoint meant by ``source``: a run's directory (its newest), its ``checkpoints/``, or one in there.

    Raises CheckpointError: there is none, or it is damaged; ConfigError: the run's configuration cannot be read.
    """
    where = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    path = checkpoint.resolve(where).absolute()
    run_dir = path.parent.parent
    if not (run_dir / "config.toml").is_file():
        raise CheckpointError(f"{path} does not lie in a run's directory: {run_dir} has no config.toml")
    config = toml.read(run_dir / "config.toml")
    name = config.model.hf_checkpoint
    model = run_dir / "inputs" / "model" if builtin.is_builtin(name) else Path(name)
    verified = checkpoint.verify(path)
    return Found(path, checkpoint.read_state(path).version, config, model, verified)


def convert(found: Found, directory: Path) -> None:
    """Write its policy to ``directory``. Raises FileExistsError: that is not empty; CheckpointError, ModelError."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} is there already: it would be replaced")
    save_hf(_weights(found), found.model, directory)


def _weights(found: Found) -> dict[str, torch.Tensor]:
    """Hugging Face name to tensor, on the CPU, in ``model.dtype``."""
    make = next(iter(hooks.MODEL_PROVIDER.functions(found.config)), ModelBridge)
    dtype = torch.bfloat16 if found.config.model.dtype == "bfloat16" else torch.float32
    with lone_model(make, str(found.model), dtype, seed=found.config.run.seed) as (bridge, module):
        from miles_async.train import dist_load  # imports Megatron

        loaded = dist_load.load({"model": module.sharded_state_dict()}, found.path)
        module.load_state_dict(loaded["model"])
        return {name: tensor.contiguous().clone() for name, tensor in bridge.hf_tensors(module)}
