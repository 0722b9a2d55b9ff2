"""Rank 0 of a weight-update group, written for the suite alone: the receiver is tested against SGLang's rules, not ours.

The rendezvous is that of SGLang's ``init_custom_process_group``: a TCP store, its keys prefixed with the group's name.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from contract.client import Answer, Engine

TIMEOUT = timedelta(seconds=30)
HOST = "127.0.0.1"
_numbers = itertools.count()


class Trainer:
    """The sending end of one group with one engine; made by :func:`joined`."""

    def __init__(self, engine: Engine, group: str, pg: Any) -> None:
        self.engine = engine
        self.group = group
        self._pg = pg

    async def send(
        self,
        tensors: Mapping[str, torch.Tensor],
        version: str,
        *,
        load_format: Literal["flattened_bucket"] | None,
        flush_cache: bool = True,
    ) -> Answer:
        """Broadcast ``tensors`` (one dtype) while the engine's update call receives them; the call's answer."""
        body = {
            "names": list(tensors),
            "dtypes": [str(t.dtype).removeprefix("torch.") for t in tensors.values()],
            "shapes": [list(t.shape) for t in tensors.values()],
            "group_name": self.group,
            "weight_version": version,
            "load_format": load_format,
            "flush_cache": flush_cache,
        }
        parts = [t.contiguous() for t in tensors.values()]
        if load_format == "flattened_bucket":
            parts = [torch.cat([t.flatten().view(torch.uint8) for t in parts])]

        def broadcast() -> None:
            for part in parts:
                dist.broadcast(part, src=0, group=self._pg)

        answer, _ = await asyncio.gather(
            self.engine.call("POST", "/update_weights_from_distributed", body), asyncio.to_thread(broadcast)
        )
        return answer


@asynccontextmanager
async def joined(engine: Engine) -> AsyncIterator[Trainer]:
    """A gloo group of us (rank 0) and the engine (rank 1)."""
    group = f"contract-{os.getpid()}-{next(_numbers)}"
    store: Any = dist.TCPStore(HOST, 0, 2, True, TIMEOUT, wait_for_workers=False)  # type: ignore[attr-defined]
    init = engine.post(
        "/init_weights_update_group",
        master_address=HOST,
        master_port=store.port,
        rank_offset=1,
        world_size=2,
        group_name=group,
        backend="gloo",
    )
    answer, pg = await asyncio.gather(init, asyncio.to_thread(_rank_zero, group, store))
    assert answer.status == 200, answer
    assert answer.body["success"], answer
    try:
        yield Trainer(engine, group, pg)
    finally:
        gone = await engine.post("/destroy_weights_update_group", group_name=group)
        dist.destroy_process_group(pg)
        assert gone.status == 200, gone


def _rank_zero(name: str, store: Any) -> Any:
    group: Any = name  # torch's type for it is private
    pg, _ = c10d._new_process_group_helper(
        2, 0, [], c10d.Backend("gloo"), c10d.PrefixStore(group, store), group_name=group, timeout=TIMEOUT
    )
    c10d._world.pg_group_ranks[pg] = {0: 0, 1: 1}
    return pg
