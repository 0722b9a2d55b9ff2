"""What a rollout or generate function is given, and what it gives back.

    rollout function    async (ticket, context) -> list[Sample]          the whole group
    generate function   async (ticket, index, context) -> list[Sample]   one rollout of it: one sample, or an agent's branches

Samples come back unscored (reward 0, no ``reward_parts``); a function that scores a sample itself puts the numbers it was
made of into ``reward_parts``, and nobody grades that sample again. Token ids and log-probs are the engine's own; what the
policy did not write has ``loss_mask`` 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bus.messages import Begun, Sample, Ticket
from miles_async.config.schema import RunConfig
from miles_async.groups.routes import RouteShape
from miles_async.rollout.bounds import Bounds, never
from miles_async.rollout.first_failures import FirstFailures

if TYPE_CHECKING:  # what only names the hooks needs no tokenizer
    from miles_async.text.tokenizer import Tokenizer

# sends the body of a /generate of several prompts somewhere and returns the answers, in order
Ask = Callable[[dict[str, Any]], Awaitable[list[dict[str, Any]]]]

# records something that happened once: (kind, **data)
Tell = Callable[..., Awaitable[None]]

R = TypeVar("R")


class SampleSlots(Protocol):
    """Where the samples of a group take their places among those in flight."""

    @property
    def begun(self) -> Begun:
        """How far learner and engines were when the group began, as far as it has."""
        ...

    def outdated(self, oldest: int) -> bool:
        """Whether the group can be trained no more, having a token of version ``oldest``; if so it is to be dropped."""
        ...

    @property
    def is_outdated(self) -> bool:
        """Whether that has been found."""
        ...

    def sample(self) -> contextlib.AbstractAsyncContextManager[Ask]:
        """A slot for one sample as long as this is open; what it asks for goes through the :data:`Ask` that this gives."""
        ...


async def tell_nobody(kind: str, **data: Any) -> None:
    """Where nobody keeps a record."""


@dataclass(frozen=True)
class RolloutContext:
    """What the functions of one rollout worker share."""

    config: RunConfig
    tokenizer: Tokenizer
    ask: Ask  # raises EngineError: refused, or nobody answers within rollout.request_timeout_s
    stack: contextlib.AsyncExitStack  # closed when the worker ends
    tell: Tell = tell_nobody
    slots: SampleSlots | None = None  # of the group that this context was made for; None: nobody counts
    firsts: FirstFailures = field(default_factory=FirstFailures)  # what was told of failures
    routes: RouteShape | None = None  # of the model whose experts are replayed (rollout.routing_replay)
    _resources: dict[str, Any] = field(default_factory=dict)
    _opening: dict[str, asyncio.Lock] = field(default_factory=dict)

    @property
    def bounds(self) -> Bounds:
        """Where a response ends at this run's engines, and what comes with it."""
        bounds = Bounds.of(self.tokenizer, self.config.engine.context_length, self.routes)
        retracts, outdated = (
            self.config.weights.pause_mode == "retract",
            never if self.slots is None else self.slots.outdated,
        )
        return dataclasses.replace(bounds, updates_retract=retracts, outdated=outdated)

    @contextlib.asynccontextmanager
    async def one_sample(self) -> AsyncIterator[RolloutContext]:
        """The context of one sample, which is in flight as long as this is open. Waits for a slot; without it, each request has
        slots of its own."""
        if self.slots is None:
            yield self
        else:
            async with self.slots.sample() as ask:
                yield dataclasses.replace(self, ask=ask)

    async def resource(self, name: str, opened: Callable[[], contextlib.AbstractAsyncContextManager[R]]) -> R:
        """What ``opened()`` gives, entered once for this worker, however many ask at once, and left when it ends.

        Raises what entering it raises; the next one who asks then tries again.
        """
        async with self._opening.setdefault(name, asyncio.Lock()):
            if name not in self._resources:
                self._resources[name] = await self.stack.enter_async_context(opened())
            return self._resources[name]


RolloutFunction = Callable[[Ticket, RolloutContext], Awaitable[list[Sample]]]
GenerateFunction = Callable[[Ticket, int, RolloutContext], Awaitable[list[Sample]]]
