"""A model's fingerprint: what tells two Hugging Face directories apart without reading all of their weights.

Promises: equal for the same tensors and the same ``config.json``, in however many files and under whatever path; another one as
soon as a tensor has another name, type or shape, or other bytes within the ``PART_BYTES`` at its beginning, in its middle or at
its end, which training any further changes. No torch in here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from miles_async.models.support import ModelError
from miles_async.models.tensor_names import headers

PART_BYTES = 4096
UNTOLD = ("transformers_version",)  # of config.json: who wrote it; so do keys that begin with "_"


def fingerprint(directory: str | Path) -> str:
    """32 hex digits. Raises ModelError: the directory holds no model, or it cannot be read."""
    directory = Path(directory)
    digest = hashlib.sha256(json.dumps(_config(directory), sort_keys=True).encode())
    tensors = [
        (name, entry, file, start) for file, start, header in headers(directory) for name, entry in header.items()
    ]
    for name, entry, file, start in sorted(tensors, key=lambda tensor: tensor[0]):
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        try:
            first, end = (start + int(offset) for offset in entry["data_offsets"])
            with file.open("rb") as stream:
                for place in sorted({first, max(first, (first + end - PART_BYTES) // 2), max(first, end - PART_BYTES)}):
                    stream.seek(place)
                    digest.update(stream.read(min(PART_BYTES, end - place)))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{file}: tensor {name} cannot be read: {error}") from None
    return digest.hexdigest()[:32]


def _config(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / "config.json").read_bytes())
        return {key: value for key, value in found.items() if not key.startswith("_") and key not in UNTOLD}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{directory / 'config.json'}: cannot be read: {error}") from None
