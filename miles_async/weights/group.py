"""The process group that carries weights: rank 0 here, the engines behind it, over NCCL or gloo.

Promises: compatible with SGLang's ``init_custom_process_group`` (a TCP store, prefixed with the group's name); a group
can be formed, given up and formed again without the lost member; forming and sending have deadlines; an engine that
says no while a broadcast waits for it breaks the broadcast instead of holding it until the deadline.

The store's server belongs to this object and the joining thread talks to it as a client: dropping the server
releases every rank that still waits in the rendezvous, ours and the engines'. It is dropped only when they are all
there, though: a client that finds no server looks for it until its own deadline (30 minutes in SGLang, whose
scheduler stands still meanwhile).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed import distributed_c10d as c10d

from miles_async.config.schema import RunConfig
from miles_async.engines.client import EngineError
from miles_async.hooks.daemon_thread import in_thread
from miles_async.weights.update import Receiver

T = TypeVar("T")
Backend = Literal["gloo", "nccl"]

FORM_TIMEOUT_S = 20.0  # an engine that is alive joins in far less; while it waits for others it generates nothing
LEAVE_TIMEOUT_S = 5.0
_numbers = itertools.count()
_log = logging.getLogger(__name__)


class GroupError(RuntimeError):
    """The collective failed. ``refusals`` holds the engines whose error, or silence, came before we broke it off."""

    def __init__(self, message: str, refusals: dict[str, EngineError] | None = None) -> None:
        super().__init__(message)
        self.refusals = refusals or {}


def choose_backend(config: RunConfig) -> Backend:
    """``weights.backend``; "auto" is NCCL where this process sees a second GPU, since NCCL refuses two ranks on one."""
    if config.weights.backend != "auto":
        return config.weights.backend
    if config.model.device != "cpu" and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        return "nccl"
    return "gloo"


def own_address(peer_url: str) -> str:
    """The address of this machine as the engine at ``peer_url`` sees it: loopback stays loopback."""
    host = urlsplit(peer_url).hostname or "127.0.0.1"
    family, kind, proto, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.connect(address)  # UDP: picks the route, sends nothing
        return str(probe.getsockname()[0])


class WeightGroup:
    """Rank 0 and the ranks of ``receivers``. Make it with :meth:`form`, end it with :meth:`leave`."""

    def __init__(self, receivers: Sequence[Receiver], backend: Backend, name: str) -> None:
        self.receivers = tuple(receivers)
        self.backend: Backend = backend
        self.name = name
        # what all of it has confirmed, as whoever sends names it: nobody joins a group later, not even an engine that came back
        self.holds: int | None = None
        self._server: TCPStore | None = None
        self._pg: Any = None
        self._device = torch.device("cuda" if backend == "nccl" else "cpu")

    @classmethod
    async def form(cls, receivers: Sequence[Receiver], backend: Backend, timeout_s: float) -> WeightGroup:
        """Meet with all ``receivers``. Raises GroupError naming the engines that did not come."""
        group = cls(receivers, backend, f"miles_async_{os.getpid()}_{next(_numbers)}")
        try:
            await group._meet(min(timeout_s, FORM_TIMEOUT_S))
        except BaseException:
            await group.leave()
            raise
        return group

    async def _meet(self, timeout_s: float) -> None:
        world = 1 + sum(r.ranks for r in self.receivers)
        address = own_address(self.receivers[0].client.url)
        limit = timedelta(seconds=timeout_s)
        listener = socket.create_server((address, 0), backlog=world)
        port = listener.getsockname()[1]
        self._server = TCPStore(
            address, port, world, True, limit, wait_for_workers=False, master_listen_fd=listener.detach()
        )

        def join() -> Any:
            store = TCPStore(address, port, world, False, limit, wait_for_workers=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                group_name: Any = self.name
                pg, _ = c10d._new_process_group_helper(
                    world,
                    0,
                    [],
                    c10d.Backend(self.backend),
                    c10d.PrefixStore(self.name, store),
                    group_name,
                    timeout=limit,
                )
            c10d._world.pg_group_ranks[pg] = {rank: rank for rank in range(world)}
            return pg

        joins: dict[str, Awaitable[None]] = {}
        rank = 1
        for receiver in self.receivers:
            joins[receiver.name] = receiver.client.init_group(
                address=address,
                port=port,
                rank_offset=rank,
                world_size=world,
                group=self.name,
                backend=self.backend,
                timeout=timeout_s,
            )
            rank += receiver.ranks
        self._pg = await self._together(in_thread(join), joins, give_up=self._release)

    async def broadcast(self, flat: torch.Tensor, receive: dict[str, Awaitable[None]], timeout_s: float) -> None:
        """Send ``flat`` (uint8, any device) while the engines' calls in ``receive`` (by engine name) take it in.

        Returns when it was sent and every call has answered. Raises GroupError; the group is then of no use.
        """
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        options.timeout = timedelta(seconds=timeout_s)

        def send() -> None:
            data = flat.to(self._device)
            self._pg.broadcast([data], options).wait()
            if self._device.type == "cuda":  # wait() orders streams only; the buffer must outlive the transfer
                torch.cuda.current_stream().synchronize()

        await self._together(in_thread(send), receive, give_up=self._break)

    async def _together(
        self,
        ours: Awaitable[T],
        theirs: dict[str, Awaitable[None]],
        give_up: Callable[[asyncio.Future[Any], set[str]], Awaitable[None]],
    ) -> T:
        """Our half of a collective and the engines' calls. The first refusal makes us break the whole off."""
        mine = asyncio.ensure_future(ours)
        calls = {name: asyncio.ensure_future(call) for name, call in theirs.items()}
        everything: list[asyncio.Future[Any]] = [mine, *calls.values()]
        try:
            _, pending = await asyncio.wait(everything, return_when=asyncio.FIRST_EXCEPTION)
            refusals = _refusals(calls)  # those that come after this are victims of our breaking it off
            if pending:
                await give_up(mine, {name for name, call in calls.items() if call in pending})
                await asyncio.wait(pending, timeout=LEAVE_TIMEOUT_S)
        finally:
            for task in everything:
                task.cancel()
        if refusals:
            raise GroupError("; ".join(str(error) for error in refusals.values()), refusals)
        try:
            return await mine
        except (RuntimeError, asyncio.CancelledError) as error:
            if not mine.done() or asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            cause = str(error).partition("\n")[0] or "broken off"
            raise GroupError(f"group {self.name} of {', '.join(calls)}: {cause}") from None

    async def _release(self, joining: asyncio.Future[Any], waiting: set[str]) -> None:
        """Let go the engines that wait in the rendezvous for one that does not come, once they have got there."""
        server, expected, rank = self._server, set[int](), 1
        for receiver in self.receivers:
            if receiver.name in waiting:
                expected.update(range(rank, rank + receiver.ranks))
            rank += receiver.ranks
        end = time.monotonic() + LEAVE_TIMEOUT_S
        while server is not None and time.monotonic() < end and not expected <= _arrived(server, self.name):
            # only a thread could wait for the store itself, and such a thread cannot be stopped
            await asyncio.wait([joining], timeout=0.01)
        self._server = None

    async def _break(self, sending: asyncio.Future[Any], waiting: set[str]) -> None:
        """Close both ends: the engines' so that our sending fails, and ours so that their receiving does."""
        farewells = asyncio.ensure_future(self._tell_to_leave())
        if self.backend == "nccl" and self._pg is not None:
            await in_thread(self._pg.abort)
        await asyncio.wait([sending], timeout=LEAVE_TIMEOUT_S)
        if sending.done():
            await self._close()
        await farewells

    async def _close(self) -> None:
        """Close our end. The connections live as long as the object, so nothing may hold it afterwards."""
        self._server = None
        held, self._pg = [self._pg], None

        def close() -> None:
            pg = held.pop()
            if pg is not None:
                if self.backend == "nccl":
                    pg.abort()  # without it, destroying waits for what is in flight
                dist.destroy_process_group(pg)

        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await in_thread(close)
        except (RuntimeError, ValueError, TimeoutError) as error:
            _log.debug("closing %s: %s", self.name, error)

    async def _tell_to_leave(self) -> None:
        leaving = (r.client.destroy_group(self.name, timeout=LEAVE_TIMEOUT_S) for r in self.receivers)
        for receiver, answer in zip(
            self.receivers, await asyncio.gather(*leaving, return_exceptions=True), strict=True
        ):
            if isinstance(answer, BaseException):
                _log.debug("%s did not leave %s: %s", receiver.name, self.name, answer)

    async def leave(self) -> None:
        """Give the group up on both sides. Never raises: a member that is gone has left already."""
        await self._close()
        await self._tell_to_leave()


def _arrived(server: Any, group: str) -> set[int]:
    """The ranks that have put their address into the store of a gloo group (``<group>/.../<rank>``)."""
    keys = (key.rpartition("/") for key in server.list_keys())
    return {int(rank) for prefix, _, rank in keys if prefix.startswith(group) and rank.isdigit()}


def _refusals(calls: Mapping[str, asyncio.Future[None]]) -> dict[str, EngineError]:
    """The engines that have answered with an error so far. Raises what is not an engine's error."""
    refusals: dict[str, EngineError] = {}
    for name, call in calls.items():
        if call.done() and (error := call.exception()) is not None:
            if not isinstance(error, EngineError):
                raise error
            refusals[name] = error
    return refusals


class WeightGroups:
    """The groups in use, one for each wave: formed when first needed and again when a wave's members change."""

    def __init__(self, backend: Backend) -> None:
        self.backend: Backend = backend
        self._groups: dict[frozenset[tuple[str, str]], WeightGroup] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def get(self, receivers: Sequence[Receiver], timeout_s: float) -> WeightGroup:
        """The group of exactly these engines. Raises GroupError."""
        key = frozenset((r.name, r.client.url) for r in receivers)
        if key not in self._groups:
            self._groups[key] = await WeightGroup.form(receivers, self.backend, timeout_s)
        return self._groups[key]

    def discard(self, group: WeightGroup) -> None:
        """Give up one group, for instance because a member is gone. Nobody waits for the farewells."""
        self._groups = {key: kept for key, kept in self._groups.items() if kept is not group}
        task = asyncio.create_task(group.leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def keep_only(self, waves: Iterable[Sequence[Receiver]]) -> None:
        """Give up all groups but those of ``waves``."""
        keep = {frozenset((r.name, r.client.url) for r in wave) for wave in waves}
        for key in [key for key in self._groups if key not in keep]:
            self.discard(self._groups[key])

    async def close(self) -> None:
        """Give up all groups and see them off."""
        self.keep_only(())
        await asyncio.gather(*self._leaving)
