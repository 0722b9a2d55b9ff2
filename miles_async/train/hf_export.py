"""A Hugging Face directory from exported tensors.

Promises: transformers and SGLang load it as they load the original: same tokenizer files, same configuration but for the
type of the weights, which is the one that they have here; weights in safetensors; it appears under its name only when it is
whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from miles_async.disk.fence import before_it_counts, mark
from miles_async.weights.config_dtype import say_dtype

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


def save_hf(
    tensors: dict[str, torch.Tensor], source: Path, directory: Path, settings: Mapping[str, Any] | None = None
) -> None:
    """Write ``tensors`` and every file of ``source`` that holds no weights to ``directory``, replacing what is there.

    settings: of config.json, besides those of ``source``.
    """
    from huggingface_hub import save_torch_state_dict

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
    say_dtype(writing, ((tensor.dtype, tensor.shape) for tensor in tensors.values()))
    save_torch_state_dict(tensors, str(writing))
    before_it_counts()
    if directory.exists():
        shutil.rmtree(directory)
    writing.rename(directory)
