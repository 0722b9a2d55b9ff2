"""The tensors of a Hugging Face directory, told from the headers of its safetensors files.

Promises: no weights are read, and no torch is imported; a file that is none is refused with one line.
Source of the format: https://huggingface.co/docs/safetensors: the length of the header in 8 bytes, the header as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miles_async.models.support import ModelError

MAX_HEADER_BYTES = 1 << 30


def tensor_types(directory: str | Path) -> dict[str, str]:
    """Name to type, as safetensors calls it (``F32``, ``BF16``), of each tensor. Raises ModelError."""
    return {name: entry["dtype"] for _, _, header in headers(directory) for name, entry in header.items()}


def headers(directory: str | Path) -> Iterator[tuple[Path, int, dict[str, dict[str, Any]]]]:
    """Each file, the byte at which its data begin, and name to entry (``dtype``, ``shape``, ``data_offsets``) of its tensors.

    Raises ModelError.
    """
    for file in sorted(Path(directory).glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                if (size := int.from_bytes(stream.read(8), "little")) > MAX_HEADER_BYTES:
                    raise ValueError(f"a header of {size} bytes")
                header: dict[str, Any] = json.loads(stream.read(size))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            if not all("dtype" in entry for entry in entries.values()):
                raise ValueError("a tensor without a type")
        except OSError as error:
            raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from None
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
            raise ModelError(f"{file}: no safetensors file") from None
        yield file, 8 + size, entries
