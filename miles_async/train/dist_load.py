"""Megatron's ``torch_dist`` load without running what a checkpoint says.

Promises: three things in a checkpoint are pickles, ``.metadata``, ``common.pt`` and the objects among the shards; of each only
what a checkpoint of this project holds is made, tensors and plain data, and a pickle that asks for anything else is refused
with its name before it is called. The stock strategy unpickles the first and the last as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from miles_async.train.checkpoint import CheckpointError
from miles_async.train.light_imports import without_dtensors

with without_dtensors():
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import CheckpointingException
    from megatron.core.dist_checkpointing.strategies import torch as torch_dist
    from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME, TorchCommonLoadStrategy
    from megatron.core.dist_checkpointing.strategies.torch import MCoreLoadPlanner, TorchDistLoadShardedStrategy
    from torch.distributed.checkpoint._traverse import set_element
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

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
_UNFIT = (CheckpointingException, pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError)


def load(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    """What a sharded state dict describes, from a checkpoint's directory. Collective.

    Raises CheckpointError: it asks for a foreign object, or is no checkpoint of these tensors.
    """
    try:
        loaded: Any = dist_checkpointing.load(state, str(directory), _Shards(), _Common())
        return loaded
    except CheckpointException as error:  # torch wraps what goes wrong on any rank, in a BaseException
        raise _told(error.failures[min(error.failures)][0], directory) from None
    except _UNFIT as error:
        raise _told(error, directory) from error


def read_metadata(file: Path) -> Metadata:
    """The table of contents of a ``torch_dist`` checkpoint. Raises CheckpointError."""
    try:
        with file.open("rb") as stream:
            found = _Unpickler(stream, file).load()
    except Exception as error:
        raise _told(error, file) from None
    if not isinstance(found, Metadata):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not a table of contents")
    return found


def _told(error: BaseException, place: Path | str) -> CheckpointError:
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


class _Reader(FileSystemReader):
    """Reads the table of contents once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = read_metadata(Path(self.path) / ".metadata")
            self._metadata.storage_meta = self._metadata.storage_meta or StorageMeta()
            self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


class _Planner(MCoreLoadPlanner):
    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        found = _data_only(value, f"the object {name}")
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], found)
        else:
            self.state_dict[name] = found


class _Shards(TorchDistLoadShardedStrategy):
    def load(self, sharded_state_dict: Any, checkpoint_dir: Any) -> Any:
        with _in_place_of("_get_filesystem_reader", _reader), _in_place_of("MCoreLoadPlanner", _Planner):
            return super().load(sharded_state_dict, checkpoint_dir)


class _Common(TorchCommonLoadStrategy):
    def load_common(self, checkpoint_dir: Any) -> Any:
        file = Path(checkpoint_dir) / COMMON_STATE_FNAME
        return _data_only(file, str(file), map_location="cpu")


def _reader(checkpoint_dir: Any, cache_metadata: bool = False) -> FileSystemReader:
    return _Reader(checkpoint_dir)


def _data_only(source: Any, name: str, map_location: str | None = None) -> Any:
    try:
        # Transformer Engine keeps its extra state in a BytesIO
        with torch.serialization.safe_globals([io.BytesIO]):
            return torch.load(source, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{name} holds more than tensors and plain data: refused ({_line(error)})") from None
    except Exception as error:  # torn files come to errors of many kinds
        raise _told(error, name) from None


def _line(error: Exception) -> str:
    """What torch says, without its advice to switch the check off."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "global" in line), lines[0])[:200]


@contextlib.contextmanager
def _in_place_of(name: str, value: Any) -> Iterator[None]:
    """Megatron's strategy names its reader and its planner in its module only."""
    stock = getattr(torch_dist, name)
    setattr(torch_dist, name, value)
    try:
        yield
    finally:
        setattr(torch_dist, name, stock)
