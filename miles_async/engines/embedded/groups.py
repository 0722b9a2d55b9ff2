"""The receiving end of the weight transfer: process groups as SGLang forms them, tensors as SGLang receives them.

Promises: joins what ``init_custom_process_group`` of SGLang joins (a TCP store prefixed with the group's name); waits of
joining and receiving have a deadline; nothing of the model is touched here.
"""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed import distributed_c10d as c10d

T = TypeVar("T")

# How long to wait for the other ranks. The sender has shorter deadlines of its own; this one only keeps an engine
# whose sender vanished without closing its connection from waiting for ever.
GROUP_TIMEOUT_S = 120.0
CONNECT_S = 5.0
LOOK_S = 0.1  # between two looks for the sender's store
KEPT_BUFFERS = 2  # that nobody uses at the moment


class TransferError(RuntimeError):
    """Joining or receiving failed; the message names the group."""


class Buffers:
    """Host memory that buckets are received into: fresh pages would cost as much as receiving.

    The model may adopt a bucket's memory; what it has then let go of takes a later bucket. ``in_use()`` gives the addresses
    of the model's storages.
    """

    def __init__(self, in_use: Callable[[], Collection[int]]) -> None:
        self._in_use = in_use
        self._known: list[torch.Tensor] = []
        self._lent: set[int] = set()

    def take(self, size: int) -> torch.Tensor:
        """uint8 [size], nobody else's until it is given back."""
        busy = self._lent.union(self._in_use())
        free = [memory for memory in self._known if memory.data_ptr() not in busy]
        fits = [memory for memory in free if size <= memory.numel() <= 2 * size]
        memory = min(fits, key=torch.Tensor.numel) if fits else torch.empty(size, dtype=torch.uint8)
        spare = [other for other in free if other is not memory][:KEPT_BUFFERS]
        self._known = [other for other in self._known if other.data_ptr() in busy] + spare + [memory]
        self._lent.add(memory.data_ptr())
        return memory[:size]

    def give_back(self, memory: torch.Tensor) -> None:
        """Take back memory that is of no use any more to who took it; it may be the model's."""
        self._lent.discard(memory.data_ptr())


def join_group(
    address: str, port: int, *, rank: int, world_size: int, name: str, backend: str, over: threading.Event
) -> Any:
    """Meet the other ranks; blocks until all are there. Raises TransferError.

    ``over``: set when nobody waits for the group any more: its sender's store is looked for no longer. Once that is found it
    is the sender's to end this, by closing it.
    """
    limit = timedelta(seconds=GROUP_TIMEOUT_S)
    try:
        store = _store_at(address, port, world_size, over)
        store.set_timeout(limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the helper is called without a default group
            group_name: Any = name
            group, _ = c10d._new_process_group_helper(
                world_size, rank, [], c10d.Backend(backend), c10d.PrefixStore(name, store), group_name, timeout=limit
            )
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, OSError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise TransferError(f"rank {rank} could not join group {name} at {address}:{port}: {reason}") from None
    c10d._world.pg_group_ranks[group] = {index: index for index in range(world_size)}
    return group


def _store_at(address: str, port: int, world_size: int, over: threading.Event) -> TCPStore:
    """A connection to the sender's store, once somebody listens there. Raises OSError, RuntimeError, ValueError."""
    end = time.monotonic() + GROUP_TIMEOUT_S
    while True:  # by itself a TCPStore looks until its own deadline, with a stack trace each time that it finds nobody
        try:
            socket.create_connection((address, port), timeout=CONNECT_S).close()
            break
        except socket.gaierror:  # an address that is none
            raise
        except OSError:
            if over.wait(LOOK_S) or time.monotonic() >= end:
                raise
    return TCPStore(address, port, world_size, False, timedelta(seconds=GROUP_TIMEOUT_S))


def leave_group(group: Any) -> None:
    """Close this rank's connections."""
    dist.destroy_process_group(group)


def receive(
    group: Any,
    name: str,
    specs: list[tuple[str, torch.dtype, list[int]]],
    device: torch.device,
    *,
    flattened: bool,
    buffer: torch.Tensor | None = None,
) -> list[tuple[str, torch.Tensor]]:
    """The tensors that rank 0 broadcasts: one broadcast each, or one uint8 buffer with all of them in order.

    ``specs`` is (name, dtype, shape) in the sender's order; flattened tensors lie in ``buffer``, where it is given (uint8, of
    :func:`flattened_size`). Raises TransferError, also if a tensor is not aligned to its dtype.
    """
    try:
        if flattened:
            size = flattened_size(specs)
            flat = torch.empty(size, dtype=torch.uint8, device=device) if buffer is None else buffer
            dist.broadcast(flat, src=0, group=group)
            tensors = unflatten(flat, specs)
        else:
            tensors = [(label, torch.empty(shape, dtype=dtype, device=device)) for label, dtype, shape in specs]
            works = [dist.broadcast(tensor, src=0, group=group, async_op=True) for _, tensor in tensors]
            for work in works:
                if work is not None:
                    work.wait()
        if device.type == "cuda":  # NCCL's wait orders streams only; the compute thread reads on another one
            torch.cuda.synchronize(device)
        return tensors
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise TransferError(f"receiving from rank 0 of group {name}: {reason}") from None


def flattened_size(specs: list[tuple[str, torch.dtype, list[int]]]) -> int:
    """Bytes of the buffer. Raises TransferError if a tensor would start off its dtype's alignment."""
    offset = 0
    for name, dtype, shape in specs:
        if offset % dtype.itemsize:
            raise TransferError(f"{name} starts at byte {offset}, not a multiple of {dtype.itemsize} ({dtype})")
        offset += torch.Size(shape).numel() * dtype.itemsize
    return offset


def unflatten(flat: torch.Tensor, specs: list[tuple[str, torch.dtype, list[int]]]) -> list[tuple[str, torch.Tensor]]:
    """Views of the tensors in a buffer of :func:`flattened_size` bytes."""
    tensors, offset = [], 0
    for name, dtype, shape in specs:
        size = torch.Size(shape).numel() * dtype.itemsize
        tensors.append((name, flat[offset : offset + size].view(dtype).reshape(shape)))
        offset += size
    return tensors
