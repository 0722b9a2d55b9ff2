"""What the learner's rank 0 says of a step, and the functions of the user that are told of it.

Promises: a log or post-save function that raises, or returns what it may not, costs a line for each different cause
(``hook_failed``), and neither the step nor the run; rewards that tell nothing apart are named after a few steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from actors.runtime.compute import ComputeThread
from actors.runtime.context import ActorContext
from bus.messages import Batch
from miles_async.config.layout import replicas
from miles_async.hooks.calls import refused
from miles_async.hooks.faults import place, trace, words
from miles_async.hooks.hook import Hook
from miles_async.rollout.first_failures import OwnCancellation, kind_of
from miles_async.train.hooks import LOG, POST_SAVE
from miles_async.train.idle_rewards import IdleRewards
from miles_async.train.log_metrics import checked


class LearnerReport:
    """Of one life of the learner's rank 0; functions are called in its compute thread, what follows a checkpoint that was
    written beside the steps in the writer's."""

    def __init__(self, ctx: ActorContext) -> None:
        self._ctx = ctx
        self._log, self._post_save = LOG.functions(ctx.config), POST_SAVE.functions(ctx.config)
        self._idle = IdleRewards(ctx.config)
        self._told: set[str] = set()

    async def step(self, batch: Batch, metrics: dict[str, float], compute: ComputeThread) -> dict[str, float]:
        """The metrics of the step, with what the user's functions add; what is noticed in them is told."""
        metrics = metrics | {"epoch": epoch(batch.group_ids)}
        metrics["dp_size"] = float(replicas(self._ctx.config.learner))
        if batch.masked_tokens >= 0:
            metrics["masked_tokens"] = float(batch.masked_tokens)
        for function in self._log:
            logged = partial(_logged, function, batch.step, dict(metrics))
            metrics |= await self._call(LOG, compute, logged) or {}
        await self._ctx.metrics(batch.step, metrics)
        if text := self._idle.warning(metrics):
            await self._ctx.event("no_variance", step=batch.step, warning=text)
        return metrics

    async def saved(self, version: int, directory: Any, compute: ComputeThread) -> None:
        """A checkpoint is durable."""
        for function in self._post_save:
            await self._call(POST_SAVE, compute, partial(function, version, directory))

    async def _call(self, hook: Hook, compute: ComputeThread, function: Callable[[], Any]) -> Any:
        def guarded() -> Any:
            try:
                found = function()
                if inspect.isawaitable(found):
                    raise refused(hook, function, found)
                return found
            except Exception as error:
                if not isinstance(error, StopIteration):  # which no future takes
                    raise
                raise OwnCancellation(words(error)) from error
            except BaseException as error:  # in this thread nothing of that is ours
                raise OwnCancellation(words(error)) from error

        try:
            return await compute(guarded)
        except Exception as error:
            cause = str(error) if isinstance(error, OwnCancellation) else words(error)
            where = place(error)
            kind = kind_of(hook.key, f"{cause} ({where})" if where else cause)
            if kind not in self._told:
                self._told.add(kind)
                await self._ctx.event("hook_failed", key=hook.key, cause=cause, place=where, traceback=trace(error))
            return None


def _logged(function: Callable[..., Any], step: int, metrics: dict[str, float]) -> dict[str, float]:
    return checked(function(step, metrics))


def epoch(group_ids: tuple[str, ...]) -> float:
    """The last epoch that a prompt of the batch is of, from 0: ids are ``epoch-index-attempt``."""
    numbers = [head for head in (group_id.partition("-")[0] for group_id in group_ids) if head.isdecimal()]
    return float(max(map(int, numbers), default=0))
