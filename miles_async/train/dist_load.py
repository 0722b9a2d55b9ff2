"""Megatron's ``torch_dist`` load without running what a checkpoint says.

Promises: three things in a checkpoint are pickles, ``.metadata``, ``common.pt`` and the objects among the shards; of each only
what a checkpoint of this project holds is made, tensors and plain data, and a pickle that asks for anything else is refused
with its name before it is called (checkpoint_contents.py). The stock strategy unpickles the first and the last as they are.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miles_async.train.light_imports import without_dtensors

with without_dtensors():
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import CheckpointingException
    from megatron.core.dist_checkpointing.strategies import torch as torch_dist
    from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME, TorchCommonLoadStrategy
    from megatron.core.dist_checkpointing.strategies.torch import MCoreLoadPlanner, TorchDistLoadShardedStrategy
    from torch.distributed.checkpoint._traverse import set_element
    from torch.distributed.checkpoint.api import CheckpointException

    from miles_async.train.checkpoint_contents import UNFIT, ContentsReader, data_only, told

_UNFIT = (CheckpointingException, *UNFIT)


def load(state: dict[str, Any], directory: Path, *, shards_only: bool = False) -> dict[str, Any]:
    """What a sharded state dict describes, from a checkpoint's directory. Collective.

    shards_only: without ``common.pt``, where Megatron-LM keeps its arguments, too, which are more than plain data.

    Raises CheckpointError: it asks for a foreign object, or is no checkpoint of these tensors.
    """
    try:
        loaded: Any = dist_checkpointing.load(
            state, str(directory), _Shards(), _Nothing() if shards_only else _Common()
        )
        return loaded
    except CheckpointException as error:  # torch wraps what goes wrong on any rank, in a BaseException
        raise told(error.failures[min(error.failures)][0], directory) from None
    except _UNFIT as error:
        raise told(error, directory) from error


class _Planner(MCoreLoadPlanner):
    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        found = data_only(value, f"the object {name}")
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], found)
        else:
            self.state_dict[name] = found


class _Shards(TorchDistLoadShardedStrategy):
    def load(self, sharded_state_dict: Any, checkpoint_dir: Any) -> Any:
        with in_place_of("_get_filesystem_reader", _reader), in_place_of("MCoreLoadPlanner", _Planner):
            return super().load(sharded_state_dict, checkpoint_dir)


class _Common(TorchCommonLoadStrategy):
    def load_common(self, checkpoint_dir: Any) -> Any:
        file = Path(checkpoint_dir) / COMMON_STATE_FNAME
        return data_only(file, str(file), map_location="cpu")


class _Nothing(TorchCommonLoadStrategy):
    def load_common(self, checkpoint_dir: Any) -> Any:
        return {}


def _reader(checkpoint_dir: Any, cache_metadata: bool = False) -> ContentsReader:
    return ContentsReader(checkpoint_dir)


@contextlib.contextmanager
def in_place_of(name: str, value: Any) -> Iterator[None]:
    """Megatron's strategy names its reader and its planner in its module only."""
    stock = getattr(torch_dist, name)
    setattr(torch_dist, name, value)
    try:
        yield
    finally:
        setattr(torch_dist, name, stock)
