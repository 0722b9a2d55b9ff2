"""What of a checkpoint of torch's is a pickle, its table of contents (``.metadata``) and its objects, read without running it.

Promises: only what such a table is made of is made, or tensors and plain data; a pickle that asks for anything else is refused
with its name before it is called.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from miles_async.train.checkpoint import CheckpointError

_CHECKPOINT = "torch.distributed.checkpoint."
# what .metadata is made of; a dtype or a layout of torch is allowed by its type
_ALLOWED = {
    _CHECKPOINT + "metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    _CHECKPOINT + "planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"},
    _CHECKPOINT + "filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
}
# what bytes that are no checkpoint, or one of other tensors, come to; not: ranks that are silent, a disk that fails
UNFIT = (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError)


def read_metadata(file: Path) -> Metadata:
    """The table of contents of a ``torch_dist`` checkpoint. Raises CheckpointError."""
    try:
        with file.open("rb") as stream:
            found = _Unpickler(stream, file).load()
    except Exception as error:
        raise told(error, file) from None
    if not isinstance(found, Metadata):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not a table of contents")
    return found


def told(error: BaseException, place: Path | str) -> CheckpointError:
    """``error`` as one line about the checkpoint, or its part, at ``place``."""
    if isinstance(error, CheckpointError):
        return error
    line = next(iter(str(error).strip().splitlines()), "")
    return CheckpointError(f"{place} cannot be read: {type(error).__name__}: {line[:300]}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, file: Path) -> None:
        super().__init__(stream)
        self._file = file

    def find_class(self, module_name: str, global_name: str) -> Any:
        found = getattr(torch, global_name, None) if module_name == "torch" else None
        if isinstance(found, torch.dtype | torch.layout | torch.memory_format):
            return found
        if global_name not in _ALLOWED.get(module_name, ()):
            raise CheckpointError(
                f"{self._file} asks for {module_name}.{global_name}, which no checkpoint has: refused, nothing was run"
            )
        return getattr(importlib.import_module(module_name), global_name)


class ContentsReader(FileSystemReader):
    """Reads the table of contents once, and torch's way of everything else."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = read_metadata(Path(self.path) / ".metadata")
            self._metadata.storage_meta = self._metadata.storage_meta or StorageMeta()
            self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


def data_only(source: Any, name: str, map_location: str | None = None) -> Any:
    """Tensors and plain data from a file of torch's, or its bytes; ``name`` in messages. Raises CheckpointError: there is
    more."""
    try:
        # Transformer Engine keeps its extra state in a BytesIO
        with torch.serialization.safe_globals([io.BytesIO]):
            return torch.load(source, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{name} holds more than tensors and plain data: refused ({_line(error)})") from None
    except Exception as error:  # torn files come to errors of many kinds
        raise told(error, name) from None


def _line(error: Exception) -> str:
    """What torch says, without its advice to switch the check off."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "global" in line), lines[0])[:200]
