"""From unscored samples to scored ones.

Promises: a sample whose grading fails, or whose grader dies or hangs, is left out of its group and named, and no other one
is; the branches of one rollout are one answer, graded once (by the last of them), and share its reward; a sample that its
function has scored keeps that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from bus.codec import TOKENS, unpack
from bus.messages import Sample, Ticket
from miles_async.groups.rollouts import rollout_of
from miles_async.rewards import Graded, RewardError, RewardSample


class Scorer(Protocol):
    """What a :class:`miles_async.rewards.Grader` does here."""

    async def score(self, samples: Sequence[RewardSample]) -> list[Graded | RewardError]: ...


async def score(
    ticket: Ticket, samples: Sequence[Sample], grader: Scorer
) -> tuple[list[Sample], list[tuple[int, RewardError]]]:
    """The samples with their rewards, without those that have none; and the rollouts that were lost, each with its error.

    Raises RewardError: nothing is left (the first error).
    """
    answers = {rollout_of(sample): sample for sample in samples}  # of each rollout the last branch
    ungraded = [number for number, sample in answers.items() if not sample.reward_parts]
    grades = await grader.score([_reward_sample(ticket, answers[number]) for number in ungraded]) if ungraded else []
    graded = dict(zip(ungraded, grades, strict=True))
    lost = [(number, grade) for number, grade in graded.items() if isinstance(grade, RewardError)]
    scored: list[Sample] = []
    for sample in samples:
        grade = graded.get(rollout_of(sample))
        if grade is None:
            scored.append(msgspec.structs.replace(sample, raw_text=""))
        elif isinstance(grade, Graded):
            scored.append(
                msgspec.structs.replace(sample, raw_text="", reward=grade.reward, reward_parts=dict(grade.parts))
            )
    if not scored:
        raise lost[0][1]
    return scored, lost


def _reward_sample(ticket: Ticket, sample: Sample) -> RewardSample:
    return RewardSample(
        prompt=ticket.prompt,
        response=sample.text,
        raw_response=sample.raw_text or sample.text,
        tokens=unpack(sample.tokens, TOKENS).tolist(),
        label=ticket.label,
        metadata=ticket.metadata,
        finish_reason=sample.finish_reason,
        group_id=ticket.group_id,
        index=sample.index,
    )
