"""On-policy distillation by the teacher's likeliest tokens: the reverse KL of each position over a set of them.

Promises: plain functions on tensors; a position whose set is empty counts by the token that was sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Strategy = Literal["only-teacher", "intersection"]
Weight = Literal["student_p", "teacher_p", "none"]


@dataclass(frozen=True)
class TopTokens:
    """The teacher's k likeliest tokens at each of N response positions."""

    student: torch.Tensor  # [N, k] float32, the learner's log-probs of them before the step
    teacher: torch.Tensor  # [N, k] float32
    shared: torch.Tensor  # [N, k] bool: among the learner's own k likeliest, too


def reverse_kl(
    top: TopTokens,
    sampled: torch.Tensor,
    sampled_teacher: torch.Tensor,
    *,
    strategy: Strategy = "only-teacher",
    weight: Weight = "student_p",
) -> torch.Tensor:
    """``sum over the set of w (student - teacher)`` at each position (Miles: --opd-log-prob-top-k).

    The set: all k ("only-teacher"), or those that are ``shared`` ("intersection"). w: the student's or the teacher's
    probabilities, or equal ones, normalised over the set. sampled, sampled_teacher: [N], log-probs of the token that was
    sampled, whose difference counts where the set is empty. Returns [N] float64.
    """
    student, teacher = top.student.double(), top.teacher.double()
    chosen = top.shared if strategy == "intersection" else torch.ones_like(top.shared)
    scores = {"student_p": student, "teacher_p": teacher, "none": torch.zeros_like(student)}[weight]
    weights = torch.where(chosen, scores, torch.full_like(scores, -torch.inf)).softmax(dim=-1)
    parts = torch.where(chosen, weights * (student - teacher), torch.zeros_like(student))
    of_sampled = sampled.double() - sampled_teacher.double()
    return torch.where(chosen.any(dim=-1), parts.sum(dim=-1), of_sampled)
