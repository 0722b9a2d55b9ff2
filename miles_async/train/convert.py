"""A checkpoint of a run as a Hugging Face directory, without the run.

Promises: the checkpoint is verified first and stays as it is; the run may be alive; what is written is what the run's own
export at that version would be, bit for bit; it is there as a whole or not at all, and replaces nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miles_async.config import toml
from miles_async.config.lora import Lora
from miles_async.config.schema import RunConfig
from miles_async.models import builtin
from miles_async.train import checkpoint
from miles_async.train.backend import BACKENDS
from miles_async.train.checkpoint import CheckpointError
from miles_async.train.hf_export import save_hf
from miles_async.train.peft_export import save_adapters


@dataclass(frozen=True)
class Found:
    """A checkpoint, the configuration of its run, and the Hugging Face directory that training began with."""

    path: Path
    version: int
    config: RunConfig
    model: Path
    verified: bool  # False: an earlier version wrote it, without checksums
    lora: Lora | None = None  # it holds adapters on that model


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
    state = checkpoint.read_state(path)
    return Found(path, state.version, config, model, verified, state.lora)


def convert(found: Found, directory: Path, *, adapters: bool = False) -> None:
    """Write its policy to ``directory``, or its adapters alone, in PEFT's format. Raises FileExistsError: that is not empty;
    CheckpointError, ModelError."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} is there already: it would be replaced")
    backend = BACKENDS.load(found.config.learner.train_backend)
    if not adapters:
        save_hf(backend.checkpoint_weights(found.config, found.model, found.path), found.model, directory)
    elif found.lora is None:
        raise CheckpointError(f"{found.path} holds a whole model and no adapters: its run had learner.lora_rank = 0")
    else:
        tensors = backend.checkpoint_adapters(found.config, found.model, found.path)
        save_adapters(tensors, found.lora, found.model, directory)
