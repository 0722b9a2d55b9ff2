"""Megatron's ``torch_dist`` save without helper processes.

Promises: the files are those of Megatron's own strategy (any Megatron loads them), written and fsynced by the calling
thread. The stock strategy starts a manager process by spawn and forks one writer a file: seconds for a small model, and
fork in a process with threads and sockets is asking for a deadlock.
"""

from __future__ import annotations

import queue
from functools import partial
from pathlib import Path
from typing import Any

from miles_async.train.light_imports import without_dtensors

with without_dtensors():
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy


def save(state: dict[str, Any], directory: Path) -> None:
    """Write the sharded state dict into an empty directory. Collective; raises what the write raises."""
    dist_checkpointing.save(state, str(directory), _InProcessStrategy("torch_dist", 1, thread_count=1))


class _InProcessStrategy(TorchDistSaveShardedStrategy):
    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> Any:
        # The writer asks for this queue while it plans; an in-process one spares the spawned manager.
        filesystem_async._results_queue = queue.Queue()
        return super().async_save(sharded_state_dict, checkpoint_dir)

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any) -> Any:
        request = super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret)
        if request.async_fn is None:  # nothing to write on this rank
            return request
        transforms = [writer.transforms] if hasattr(writer, "transforms") else []
        return request._replace(async_fn=partial(_write, transforms))


def _write(transforms: list[Any], rank: int, buckets: list[Any], results: Any) -> None:
    """Stands in for ``write_preloaded_data_multiproc``: same arguments after the first, same results."""
    written: dict[int, Any] = {}
    for index, bucket in enumerate(buckets):
        outcome: Any = queue.Queue()
        pending: Any = queue.Queue()
        pending.put(index)
        filesystem_async.FileSystemWriterAsync.write_preloaded_data(
            transforms,
            index,
            bucket,
            outcome,
            pending,
            use_fsync=True,
        )
        _, result = outcome.get_nowait()
        if isinstance(result, Exception):
            raise result
        written[index] = result
    results.put(written)
