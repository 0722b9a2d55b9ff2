"""Why a rollout came to nothing: what is on record of an attempt, and what a function of the user may not return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from bus.codec import TOKENS
from bus.messages import Sample
from miles_async.engines.client import EngineError
from miles_async.filters.apply import FilterError
from miles_async.groups.sound import UnsoundGroup, misfit
from miles_async.hooks.calls import shown
from miles_async.hooks.hook import Hook
from miles_async.rewards import RewardError
from miles_async.rewards.graded import plain
from miles_async.rollout.first_failures import FirstFailures, OwnCancellation, place_of, with_place
from miles_async.rollout.generate import AbortedError, AnswerError, NoRoomError
from miles_async.rollout.registry import ROLLOUT
from miles_async.rollout.teacher import TeacherError
from miles_async.text.unicode import words_of

DETAIL_CHARS = 400


class RolloutError(RuntimeError):
    """A rollout or generate function returned what cannot be trained on; one line. trace: of an exception of the user's."""

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


def reason_of(error: Exception) -> tuple[str, str]:
    """The reason (a word to count by) and the words of a failure, one line."""
    words = words_of(error)
    detail = words.partition(": ")[2] or words
    match error:
        case EngineError() | AnswerError() | TeacherError():
            reason = "generate_error"
        case AbortedError():
            reason = "aborted"
        case NoRoomError():
            reason = "too_long"
        case RewardError():
            reason, detail = error.reason, error.detail
        case UnsoundGroup():
            reason = error.reason
        case OwnCancellation():
            reason = "rollout_error"
        case FilterError():
            reason = "filter_error"
        case RolloutError():
            reason = "rollout_error"
        case _:  # of a function of the user
            reason, detail = "rollout_error", words
    return reason, detail.replace("\n", " ")[:DETAIL_CHARS]


def cause_of(error: Exception) -> tuple[str, str]:
    """:func:`reason_of`, and in parentheses the line of the user's that raised it."""
    reason, detail = reason_of(error)
    return reason, with_place(detail, place_of(error), DETAIL_CHARS)


def lost(error: Exception, firsts: FirstFailures) -> dict[str, Any]:
    """What is on record of a sample that was lost by ``error``; the first time of its kind also the traceback."""
    reason, detail = reason_of(error)
    news = firsts.news(error, *cause_of(error))
    return {"reason": reason, "detail": detail} | ({} if news is None else news)


def check_samples(samples: Any, hook: Hook = ROLLOUT) -> list[Sample]:
    """``samples``, which a function of ``hook`` gave, with their rewards as plain floats, also where numpy or torch has made
    them. Raises RolloutError: the learner could not take them."""
    if not isinstance(samples, Sequence) or not all(isinstance(sample, Sample) for sample in samples):
        raise RolloutError(f"{hook.key}: a list of samples is expected, not {shown(samples)}")
    if not samples:
        raise RolloutError(f"{hook.key}: no sample")
    for sample in samples:
        if problem := misfit(sample):
            raise RolloutError(f"{hook.key}: sample {sample.index}: {problem}")
    return [_with_floats(sample, hook) for sample in samples]


def _with_floats(sample: Sample, hook: Hook) -> Sample:
    parts: Any = sample.reward_parts
    if type(sample.reward) is float and all(type(value) is float for value in parts.values()):
        return sample
    try:
        reward = plain("the reward", sample.reward)
        floats = {name: plain(f"the part {name!a:.100} of the reward", value) for name, value in parts.items()}
    except (TypeError, ValueError) as error:
        raise RolloutError(f"{hook.key}: sample {sample.index}: {error}") from None
    return msgspec.structs.replace(sample, reward=reward, reward_parts=floats)


def lengths_of(samples: Any) -> list[int]:
    """Response tokens of each sample, as far as ``samples`` are any: also of those that are refused."""
    found = samples if isinstance(samples, Sequence) else ()
    return [len(s.tokens) // TOKENS.itemsize for s in found if isinstance(s, Sample) and isinstance(s.tokens, bytes)]
