"""What a rollout or generate function is given, and what it gives back.

    rollout function    async (ticket, context) -> list[Sample]          the whole group
    generate function   async (ticket, index, context) -> list[Sample]   one rollout of it: one sample, or an agent's branches

Samples come back unscored (reward 0) unless the function scores itself. Token ids and log-probs are the engine's own; what
the policy did not write has ``loss_mask`` 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from miles_async.config import RunConfig
from miles_async.tokenizer import Tokenizer

# sends the body of a /generate of several prompts somewhere and returns the answers, in order
Ask = Callable[[dict[str, Any]], Awaitable[list[dict[str, Any]]]]

R = TypeVar("R")


@dataclass(frozen=True)
class RolloutContext:
    """What the functions of one rollout worker share."""

    config: RunConfig
    tokenizer: Tokenizer
    ask: Ask  # raises EngineError: refused, or nobody answers within rollout.request_timeout_s
    stack: contextlib.AsyncExitStack  # closed when the worker ends
    _resources: dict[str, Any] = field(default_factory=dict)

    async def resource(self, name: str, opened: Callable[[], contextlib.AbstractAsyncContextManager[R]]) -> R:
        """What ``opened()`` gives, entered once for this worker and left when it ends."""
        if name not in self._resources:
            self._resources[name] = await self.stack.enter_async_context(opened())
        return self._resources[name]
