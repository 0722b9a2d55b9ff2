"""A Hugging Face directory from exported tensors.

Promises: transformers and SGLang load it as they load the original: same tokenizer files, same configuration but for the
type of the weights, which is the one that they have here; weights in safetensors, written one by one as they come, so that
nobody holds them all; it appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from miles_async.disk.fence import before_it_counts, mark
from miles_async.weights.config_dtype import say_dtype
from miles_async.weights.safetensors_file import SafetensorsFile, Spec, n_bytes
from miles_async.weights.sealed import SnapshotError

_WEIGHTS = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
)


SHARD_BYTES = 5_000_000_000  # as Hugging Face's own


def save_hf(
    specs: Sequence[Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    source: Path,
    directory: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``tensors``, which ``specs`` announces, and every file of ``source`` that holds no weights to ``directory``,
    replacing what is there.

    settings: of config.json, besides those of ``source``; shard_bytes: what a file of several holds at most, unless one tensor
    is larger.
    """
    writing = directory.with_name(f".writing-{mark()}{directory.name}")
    if writing.exists():
        shutil.rmtree(writing)
    writing.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            shutil.copy2(path, writing / path.name)
    if settings:
        config = writing / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | dict(settings), indent=2) + "\n")
    say_dtype(writing, ((dtype, shape) for _, dtype, shape in specs))
    _write_weights(writing, specs, tensors, shard_bytes)
    before_it_counts()
    if directory.exists():
        shutil.rmtree(directory)
    writing.rename(directory)


def _write_weights(
    directory: Path, specs: Sequence[Spec], tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int
) -> None:
    """``model.safetensors``, or several files and the index that says which has what."""
    shards = _shards(specs, shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    files = [SafetensorsFile(directory / name, shard, {}) for name, shard in zip(names, shards, strict=True)]
    place = {spec[0]: i for i, shard in enumerate(shards) for spec in shard}
    for name, tensor in tensors:
        if name not in place:
            raise SnapshotError(f"{name} was not announced")
        files[place[name]].put(name, tensor)
        del tensor  # before the next one is asked for
    for file in files:
        file.end()
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(n_bytes, specs))},
            "weight_map": {name: names[i] for name, i in sorted(place.items())},
        }
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(specs: Sequence[Spec], shard_bytes: int) -> list[list[Spec]]:
    """``specs`` in their order, in parts of at most so many bytes."""
    shards: list[list[Spec]] = [[]]
    size = 0
    for spec in specs:
        size += n_bytes(spec)
        if shards[-1] and size > shard_bytes:
            shards.append([])
            size = n_bytes(spec)
        shards[-1].append(spec)
    return shards
