"""The type of its weights in a model's ``config.json``.

Promises: whoever loads an exported directory by its configuration gets the tensors as they are in it, whatever the checkpoint
was that training began with; nothing else of the file changes, and nothing at all where it is right already.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from miles_async.weights.buckets import dtype_name

KEYS = ("dtype", "torch_dtype")  # of transformers 5, and of earlier ones


def say_dtype(directory: Path, tensors: Iterable[tuple[torch.dtype, Sequence[int]]]) -> None:
    """Let ``config.json`` of ``directory`` name the floating type of most values. tensors: dtype and shape of each."""
    values: Counter[torch.dtype] = Counter()
    for dtype, shape in tensors:
        if dtype.is_floating_point:
            values[dtype] += torch.Size(shape).numel()
    if not values:
        return
    file, found = directory / "config.json", dtype_name(values.most_common(1)[0][0])
    config = json.loads(file.read_bytes())
    said = [key for key in KEYS if key in config] or [KEYS[0]]
    if any(config.get(key) != found for key in said):
        file.write_text(json.dumps(config | dict.fromkeys(said, found), indent=2, ensure_ascii=False) + "\n", "utf-8")
