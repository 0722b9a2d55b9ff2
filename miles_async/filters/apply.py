"""Calling the functions that judge groups, and refusing what they may not return. No I/O.

Promises: a function that raises, or returns something else than it should, is a FilterError that names its key; a reason is
short and plain enough to be a counter's name; a sample that is filtered out keeps its place in its group.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from bus.codec import MASK, pack
from bus.messages import ReadyGroup, Sample
from miles_async.config.schema import RunConfig
from miles_async.filters.registry import BUFFER_FILTER, DYNAMIC_SAMPLING_FILTER, REWARD_POST_PROCESS, SAMPLE_FILTER
from miles_async.groups.sound import RAW
from miles_async.hooks.calls import shown
from miles_async.hooks.faults import one_line, place, trace, words
from miles_async.hooks.hook import Hook
from miles_async.rewards.graded import is_finite

Samples = Sequence[Sample]

BUFFER = "buffer_filter"  # the reason of its drops
UNNAMED = "dynamic_filter"  # the reason of a filter that gives none
REASON_CHARS = 60


class FilterError(ValueError):
    """A filter raised, or returned what it may not; one line that names its key. place, trace: of the user's exception."""

    def __init__(self, text: str, place: str = "", trace: str = "") -> None:
        super().__init__(one_line(text))
        self.place, self.trace = place, trace


class GroupFilters:
    """What a run's configuration says about scored groups."""

    def __init__(self, config: RunConfig) -> None:
        """Raises HookError: a key does not lead to a function."""
        self._keep = DYNAMIC_SAMPLING_FILTER.functions(config)
        self._train = SAMPLE_FILTER.functions(config)
        self._rewards = REWARD_POST_PROCESS.functions(config)

    def refusal(self, samples: Samples) -> str | None:
        """Why the group is of no use; None if it is. Raises FilterError."""
        for function in self._keep:
            verdict = _call(DYNAMIC_SAMPLING_FILTER, function, list(samples))
            keep, reason = verdict if isinstance(verdict, tuple) and len(verdict) == 2 else (verdict, UNNAMED)
            if not isinstance(keep, bool | np.bool_):
                raise _wrong(DYNAMIC_SAMPLING_FILTER, verdict)
            if not keep:
                if not isinstance(reason, str):
                    raise _wrong(DYNAMIC_SAMPLING_FILTER, verdict)
                return _plain(reason)
        return None

    def finished(self, samples: Samples) -> list[Sample]:
        """The samples as the learner gets them: those that are filtered out masked, rewards post-processed.

        Raises FilterError.
        """
        return self._processed(samples, self._masked(samples))

    def _masked(self, samples: Samples) -> list[Sample]:
        done = list(samples)
        for function in self._train:
            kept = _call(SAMPLE_FILTER, function, list(samples))
            if not _is_list(kept, len(done)) or not all(isinstance(keep, bool | np.bool_) for keep in kept):
                raise _wrong(SAMPLE_FILTER, kept)
            done = [sample if keep else _without_loss(sample) for sample, keep in zip(done, kept, strict=True)]
        return done

    def _processed(self, samples: Samples, done: list[Sample]) -> list[Sample]:
        for function in self._rewards:
            rewards = _call(REWARD_POST_PROCESS, function, list(samples))
            if not _is_list(rewards, len(done)) or not all(is_finite(reward) for reward in rewards):
                raise _wrong(REWARD_POST_PROCESS, rewards)
            done = [_with_reward(sample, float(reward)) for sample, reward in zip(done, rewards, strict=True)]
        return done


class BufferFilter:
    """What a run's configuration says about ready groups."""

    def __init__(self, config: RunConfig) -> None:
        """Raises HookError: the key does not lead to a function."""
        self._functions = BUFFER_FILTER.functions(config)

    def evict(self, ready: Sequence[ReadyGroup], version: int) -> list[tuple[str, str]]:
        """``(group id, reason)`` of the groups to drop. Raises FilterError."""
        evicted: dict[str, str] = {}
        for function in self._functions:
            ids = _call(BUFFER_FILTER, function, list(ready), version)
            known = {group.group_id for group in ready}
            if not isinstance(ids, list | tuple | set) or any(
                not isinstance(group_id, str) or group_id not in known for group_id in ids
            ):
                raise _wrong(BUFFER_FILTER, ids)
            evicted |= dict.fromkeys(ids, BUFFER)
        return list(evicted.items())


def _call(hook: Hook, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except BaseException as error:  # a plain call: also SystemExit and its like are the function's own
        raise FilterError(f"{hook.key}: {words(error)}", place(error), trace(error)) from None


def _wrong(hook: Hook, value: Any) -> FilterError:
    if inspect.iscoroutine(value):
        value.close()
    return FilterError(f"{hook.key} returned {shown(value)}, not {hook.returns}")


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple | np.ndarray) and len(value) == length


def _plain(reason: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", reason)[:REASON_CHARS] or UNNAMED


def _without_loss(sample: Sample) -> Sample:
    return msgspec.structs.replace(sample, loss_mask=pack(np.zeros(len(sample.loss_mask)), MASK))


def _with_reward(sample: Sample, reward: float) -> Sample:
    return msgspec.structs.replace(sample, reward=reward, reward_parts={**sample.reward_parts, RAW: sample.reward})
