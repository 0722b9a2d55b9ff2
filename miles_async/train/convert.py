"""A checkpoint of a run as a Hugging Face directory, without the run; or one of another program's Megatron.

Promises: the checkpoint stays as it is, and one of ours is verified first; the run may be alive; what is written is what the
run's own export at that version would be, bit for bit; it is there as a whole or not at all, and replaces nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from miles_async.config import toml
from miles_async.config.lora import Lora
from miles_async.config.schema import Data, Model, RunConfig
from miles_async.models import builtin
from miles_async.train import checkpoint
from miles_async.train.backend import BACKENDS
from miles_async.train.checkpoint import CheckpointError
from miles_async.train.hf_export import save_hf
from miles_async.train.peft_export import save_adapters
from miles_async.weights.config_dtype import KEYS
from miles_async.weights.safetensors_file import specs_of

_POINTER = "latest_checkpointed_iteration.txt"  # Megatron-LM's, in the directory of its checkpoints


@dataclass(frozen=True)
class Found:
    """A checkpoint, the configuration of its run, and the Hugging Face directory that training began with."""

    path: Path
    version: int
    config: RunConfig
    model: Path
    verified: bool  # False: an earlier version wrote it, without checksums
    lora: Lora | None = None  # it holds adapters on that model


def find(source: Path, model: Path | None = None) -> Found:
    """The checkpoint meant by ``source``: a run's directory (its newest), its ``checkpoints/``, or one in there.

    model: the Hugging Face directory of a model of its shape, where ``source`` is a ``torch_dist`` checkpoint that another
    program's Megatron wrote, or a directory of them with Megatron-LM's pointer to the last one.

    Raises CheckpointError: there is none, or it is damaged; ConfigError: the run's configuration cannot be read.
    """
    if model is not None:
        return _made_elsewhere(source, model)
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


def _made_elsewhere(source: Path, model: Path) -> Found:
    pointer = source / _POINTER
    name = pointer.read_text().strip() if pointer.is_file() else ""
    path = source / (f"iter_{int(name):07d}" if name.isdecimal() else name)
    if not (path / ".metadata").is_file():
        raise CheckpointError(f"{path} is no torch_dist checkpoint: it has no .metadata")
    if not (model / "config.json").is_file():
        raise CheckpointError(f"--model {model} is no Hugging Face directory: it has no config.json")
    said = json.loads((model / "config.json").read_bytes())
    dtype = next((said[key] for key in KEYS if key in said), "float32")
    config = RunConfig(
        model=Model(hf_checkpoint=str(model), dtype="bfloat16" if dtype == "bfloat16" else "float32"), data=Data()
    )
    digits = path.name.removeprefix("iter_")
    return Found(path, int(digits) if digits.isdecimal() else 0, config, model, verified=False)


def convert(found: Found, directory: Path, *, adapters: bool = False) -> None:
    """Write its policy to ``directory``, or its adapters alone, in PEFT's format. Raises FileExistsError: that is not empty;
    CheckpointError, ModelError."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} is there already: it would be replaced")
    backend = BACKENDS.load(found.config.learner.train_backend)
    if not adapters:
        weights = backend.checkpoint_weights(found.config, found.model, found.path)
        save_hf(specs_of(weights.items()), weights.items(), found.model, directory)
    elif found.lora is None:
        raise CheckpointError(f"{found.path} holds a whole model and no adapters: its run had learner.lora_rank = 0")
    else:
        tensors = backend.checkpoint_adapters(found.config, found.model, found.path)
        save_adapters(tensors, found.lora, found.model, directory)
