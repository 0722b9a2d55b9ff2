"""The state of sharded models in a checkpoint's directory, by torch.distributed.checkpoint.

Promises: every tensor is there once, under its name, and is read by any number of ranks, each its own part; what is written is
durable; tensors are all that there is, and nothing that a checkpoint says is run to read it (checkpoint_contents.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import _traverse, default_planner, planner_helpers
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from miles_async.train.checkpoint import CheckpointError
from miles_async.train.checkpoint_contents import UNFIT, ContentsReader, told

for _module in (_traverse, default_planner, planner_helpers):  # imported before, they may have none (light_imports.py)
    _module.DTensor = DTensor  # pyright: ignore[reportAttributeAccessIssue]

_POLICY = "model."
_OPTIONAL = "rng."  # there is no generator of a GPU in a checkpoint of a CPU


class DcpFiles:
    """A ``StateFiles`` (train/parts.py)."""

    backend = "fsdp"

    def begin(self, state: dict[str, Any], directory: Path, group: Any, *, copied: bool) -> Callable[[], None]:
        if copied:
            state = _copy(state)

        def write() -> None:
            writer = _Writer(directory, sync_files=True)
            if copied:  # nothing is to be fetched from a device, which torch would otherwise ask this thread for
                writer.per_thread_copy_ahead = 0
            try:
                save(state, storage_writer=writer, process_group=group)
            except CheckpointException as error:  # torch wraps what goes wrong on any rank, in a BaseException
                raise error.failures[min(error.failures)][0] from None

        return write

    def load(self, state: dict[str, Any], directory: Path) -> dict[str, Any]:
        reader = ContentsReader(directory)
        try:
            there = reader.read_metadata().state_dict_metadata
            rng = {name: value for name, value in state["rng"].items() if f"{_OPTIONAL}{name}" in there}
            state = {**state, "rng": rng}
            load(state, storage_reader=reader, planner=_TensorsOnly())
        except CheckpointException as error:
            raise told(error.failures[min(error.failures)][0], directory) from None
        except UNFIT as error:
            raise told(error, directory) from error
        return state

    def apart(self, state: dict[str, Any], prefix: str) -> None:
        """They lie under their place in the state, which is a name of their own."""


def policy_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Hugging Face name to tensor, float32 on the CPU: the policy's weights, without other ranks. Raises CheckpointError."""
    reader = ContentsReader(directory)
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(_POLICY) and isinstance(entry, TensorStorageMetadata)
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(found, storage_reader=reader, planner=_TensorsOnly(), no_dist=True)
    except CheckpointException as error:
        raise told(error.failures[min(error.failures)][0], directory) from None
    return {name.removeprefix(_POLICY): tensor for name, tensor in found.items()}


def _copy(state: Any) -> Any:
    """As it is now, on the CPU; of a sharded tensor this rank's part."""
    if isinstance(state, dict):
        return {name: _copy(part) for name, part in state.items()}
    if not isinstance(state, DTensor):
        return state.detach().to("cpu", copy=True)
    # not ``from_local``, which would put it back on the device of its mesh
    return DTensor(state.to_local().detach().to("cpu", copy=True), state._spec, requires_grad=False)  # pyright: ignore


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta | None:
        """Nothing: where it is written is not where it will be, and a path of this machine is none of another."""
        return None


class _TensorsOnly(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise CheckpointError(f"{read_item.dest_index.fqn} is an object, and no tensor: refused")
