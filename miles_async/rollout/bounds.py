"""What engines are asked beside what ``[rollout]`` says: up to where of their context, ends of a turn that they do not know,
and their experts.

Promises: what is asked for fits the context, whatever the prompt has taken of it; every engine stops on what the rollout takes
for an end of a turn. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miles_async.config.schema import Rollout
from miles_async.groups.routes import RouteShape

if TYPE_CHECKING:
    from miles_async.rollout.trajectory import Trajectory
    from miles_async.text.tokenizer import Tokenizer


def never(oldest: int) -> bool:
    """No weights are too old."""
    return False


@dataclass(frozen=True)
class Bounds:
    """``context_length``: tokens of prompt and response together; None: unknown. ``stop_token_ids``: ends of a turn that an
    engine does not know by itself. ``routes``: of the model whose experts are replayed; None: not. ``updates_retract``:
    engines compute a sequence again where the weights change (``weights.pause_mode``). ``outdated``: whether a group with a
    token of that weight version can be trained no more."""

    context_length: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    routes: RouteShape | None = None
    updates_retract: bool = True
    outdated: Callable[[int], bool] = never

    @classmethod
    def of(cls, tokenizer: Tokenizer, context_length: int | None = None, routes: RouteShape | None = None) -> Bounds:
        """Those of a model. ``context_length``: of engines that take less than it could."""
        lengths = [n for n in (tokenizer.context_length, context_length) if n is not None]
        return cls(min(lengths, default=None), tokenizer.end_of_turn.unknown_to_engines, routes)

    def room(self, trajectory: Trajectory, config: Rollout) -> int:
        """How many tokens the response may still get; 0 or less: none."""
        left = config.rollout_max_response_len - len(trajectory.tokens)
        if self.context_length is None:
            return left
        return min(left, self.context_length - len(trajectory.prompt) - len(trajectory.tokens))


NO_BOUNDS = Bounds()
