"""Megatron's ``torch_dist`` save without helper processes, in two parts: what a step must wait for, and the rest.

Promises: the files are those of Megatron's own strategy (any Megatron loads them), written and fsynced by the thread that
asks for the second part, which enters no collective but those of the group it is given. The stock strategy starts a manager
process by spawn and forks one writer a file: seconds for a small model, and fork in a process with threads and sockets is
asking for a deadlock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from miles_async.train.dist_load import in_place_of
from miles_async.train.light_imports import without_dtensors

with without_dtensors():
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
    from torch.distributed.checkpoint import filesystem

_FORM = ("torch_dist", 1)


def begin(state: dict[str, Any], directory: Path, group: Any, *, copied: bool) -> Callable[[], None]:
    """Agree on who writes what of the sharded state dict into an empty directory. Collective over all ranks.

    Returns what writes it: collective over ``group`` (None: all ranks), whose rank 0 comes back when every rank has written.
    copied: what this rank writes is as it is now, in a copy on the CPU, whatever becomes of ``state``. Raises, as what it
    returns does, what the write raises.
    """
    strategy = _Strategy(*_FORM, thread_count=1)
    with in_place_of("FileSystemWriterAsync", _Writer):
        dist_checkpointing.save(state, str(directory), strategy, async_sharded_save=True)
    writer, contents = strategy.planned
    if copied:
        writer.keep()

    def write() -> None:
        everybodys = _gathered(writer.write(), group)
        if everybodys is not None:
            writer.finish(contents, everybodys)
            save_config(CheckpointingConfig(*_FORM), str(directory))

    return write


class _Writer(FileSystemWriterAsync):
    """The one file of this rank."""

    def prepare_write_data(self, plan: Any, planner: Any) -> None:
        self._file = f"{plan.storage_data.prefix}0{filesystem.DEFAULT_SUFFIX}"
        found = [(item, planner.resolve_data(item)) for item in plan.items]
        self._items = sorted(
            found, key=lambda one: isinstance(one[1], torch.Tensor)
        )  # objects first, as Megatron has them

    def keep(self) -> None:
        """Let go of the learner's tensors. Objects among them are bytes already."""
        for place, (item, data) in enumerate(self._items):
            if isinstance(data, torch.Tensor):
                self._items[place] = (item, data.detach().to("cpu", copy=True))

    def write(self) -> list[Any]:
        """Returns where each item lies. A rank without any has no file."""
        items, self._items = self._items, []
        if not items:
            return []
        with (Path(self.checkpoint_dir) / self._file).open("wb") as stream:
            results = [self._written(stream, item, data) for item, data in items]
            stream.flush()
            os.fsync(stream.fileno())
        return results

    def _written(self, stream: IO[bytes], item: Any, data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            data = _alone(data)
        form = filesystem.SerializationFormat.TORCH_SAVE
        return filesystem._write_item(self.transforms, stream, data, item, self._file, form)  # pyright: ignore


class _Strategy(TorchDistSaveShardedStrategy):
    planned: tuple[_Writer, Any]  # the second is known to rank 0

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any) -> Any:
        self.planned = writer, save_state_dict_ret[1]
        return AsyncRequest(None, (), [])


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, and in a storage of its own: of a part torch would write all that it is a part of."""
    tensor = tensor.detach().cpu()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
    return tensor if whole else tensor.clone()


def _gathered(mine: list[Any], group: Any) -> list[list[Any]] | None:
    """What every rank has, on rank 0."""
    if dist.get_world_size() == 1:
        return [mine]
    found: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, found, group=group)
    return found
