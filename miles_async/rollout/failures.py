"""Why a rollout came to nothing: what is on record of an attempt, and what a function of the user may not return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bus.codec import TOKENS
from bus.messages import Sample
from miles_async.engine_client import EngineError
from miles_async.filters.apply import FilterError
from miles_async.rewards import RewardError
from miles_async.rollout.first_failures import FirstFailures, OwnCancellation, place_of, with_place
from miles_async.rollout.generate import AbortedError, AnswerError, NoRoomError
from miles_async.rollout.teacher import TeacherError
from miles_async.sound_group import UnsoundGroup, misfit
from miles_async.unicode_text import words_of

DETAIL_CHARS = 400


class RolloutError(RuntimeError):
    """A rollout or generate function returned what cannot be trained on; one line."""


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


def check_samples(samples: Any) -> None:
    """Refuse what the learner could not take. Raises RolloutError."""
    if not isinstance(samples, Sequence) or not all(isinstance(sample, Sample) for sample in samples):
        raise RolloutError(f"a list of samples is expected, not {samples!r:.100}")
    if not samples:
        raise RolloutError("no sample")
    for sample in samples:
        if problem := misfit(sample):
            raise RolloutError(f"sample {sample.index}: {problem}")


def lengths_of(samples: Any) -> list[int]:
    """Response tokens of each sample, as far as ``samples`` are any: also of those that are refused."""
    found = samples if isinstance(samples, Sequence) else ()
    return [len(s.tokens) // TOKENS.itemsize for s in found if isinstance(s, Sample) and isinstance(s.tokens, bytes)]
