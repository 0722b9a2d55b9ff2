"""What a kind of engine is. A new one is a class below ``EngineKind`` in a file of its own, and a line in ``table.py``.

Nothing outside this room knows which there are: whoever needs a fact of an engine, and the actor that hosts one, asks the kind
that the configuration names. Importing a kind's file costs neither torch nor sglang; what needs them is imported where it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bus.waits import WaitKind
from miles_async.config.schema import ConfigError, Engine, RunConfig
from miles_async.http.refusals import Refusals
from miles_async.models.support import ComputingPart

if TYPE_CHECKING:
    from miles_async.engines.client import EngineClient  # it loads aiohttp, which neither a launch nor a learner needs


class EngineHost(Protocol):
    """The surroundings of one engine that a run has: the actor ``actors/engine.py``."""

    config: RunConfig
    engine: Engine  # its section; an engine of an evaluation has another one than those of the training
    name: str
    index: int  # among the engines of its role
    address: str  # on which it listens
    model_path: str
    api_key: str | None
    weight_roots: Sequence[Path]  # where it may be told to load weights from
    refusals: Refusals  # of requests, to be counted
    stop: asyncio.Event  # set when it is to end

    async def announce(self, url: str) -> None:
        """Tell the run that the engine answers at ``url``."""
        ...

    async def event(self, kind: str, **data: Any) -> None:
        """Record something that happened once."""
        ...

    def waiting(self, kind: WaitKind, **about: int | str) -> AbstractContextManager[object]:
        """While inside, the run is told that this engine waits."""
        ...

    def log_file(self, suffix: str) -> Path:
        """Where a program that serves for this engine may write."""
        ...

    def client(self, url: str) -> AbstractAsyncContextManager[EngineClient]:
        """Whatever is asked of the engine at ``url`` bears its name and its key."""
        ...

    async def until_stopped(self, *watches: Coroutine[Any, Any, None]) -> None:
        """Returns once the engine is to end, or one of ``watches`` has ended. Raises what that raises; the others are ended."""
        ...


class EngineKind:
    """One kind of engine: facts about it, its checks of a configuration, and how one is hosted."""

    KEYS: ClassVar[tuple[str, ...]] = ()  # of the configuration, that nothing else looks at
    OURS: ClassVar[bool] = True  # the run starts them, on this machine; else somebody else does
    FIXED: ClassVar[str | None] = None  # why a run that goes on cannot have more or fewer of them; None: it can
    SUMS_LIKE_SNAPSHOTS: ClassVar[bool] = False  # whether they name and hash their tensors as a snapshot does
    COMPUTES: ClassVar[ComputingPart | None] = None  # the models that they serve, where that is known before they start
    RETURNS_ROUTES: ClassVar[bool] = False  # whether they can return the experts of each token (return_routed_experts)

    def number(self, engine: Engine) -> int:
        """How many the section asks for."""
        return engine.num_engines

    def addresses(self, engine: Engine) -> list[str]:
        """Where they are; empty: on this machine, and each announces its own."""
        return []

    def check(self, config: RunConfig) -> None:
        """Refuse an ``[engine]`` that this kind cannot work with. Raises ConfigError."""

    def check_use(self, config: RunConfig) -> None:
        """Refuse what the rest of the configuration wants of them in vain. Raises ConfigError."""

    async def host(self, host: EngineHost) -> None:
        """Serve as one engine of a run: announced once it answers, watched, and gone once ``host.stop`` is set.

        Raises what ends it before: the run then starts another one in its place.
        """
        raise NotImplementedError

    def alone(self, config: RunConfig, model: str, version: str) -> AbstractAsyncContextManager[str]:
        """The address of an engine without a run, which serves ``model`` meanwhile; only where it is OURS."""
        raise NotImplementedError


def refuse_tp_size(engine: Engine) -> None:
    """Of kinds whose servers are not told how many ranks they have. Raises ConfigError."""
    if engine.tp_size > 1:
        raise ConfigError(
            f'engine.tp_size = {engine.tp_size} needs engine.kind = "sglang": an embedded engine has one rank, and external '
            "servers say themselves how many they have"
        )
