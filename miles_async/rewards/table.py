"""The built-in rewards: the list for people, and all that the rest of the system has to know of each.

A new one is a function of a ``RewardSample``, an entry here with a sentence above it, and a test. No function is imported
here, and no torch, math-verify or HTTP client with it.
"""

from __future__ import annotations

from typing import NamedTuple

BOXED = "boxed_"  # before the name of a built-in: the one that is given only the content of the last box (boxed.py)
WEIGHTED_SUM = "weighted_sum"  # no reward of its own, but the sum of those in reward.rm_weights (weighted.py)


class BuiltIn(NamedTuple):
    """A built-in reward; its function's docstring has the formula.

    function: ``package.module.function``. inline: cheap enough for the event loop; any other runs in a grading process.
    compares_with_label: it raises without one, unless the metadata have one of the keys ``instead_of_label``. parts: the
    entries of the dict that it gives; empty: it gives one number; None: nobody knows beforehand. reward_part: which of them is
    the reward where reward.reward_key does not say. needs: a module that it cannot do without, and its package. asks_server:
    its answer comes from reward.rm_url. answer_form: what it wants to see before and after an answer; a boxed one adds it.
    """

    function: str
    inline: bool = False
    compares_with_label: bool = False
    instead_of_label: tuple[str, ...] = ()
    parts: tuple[str, ...] | None = ()
    reward_part: str | None = None
    needs: tuple[str, str] | None = None
    asks_server: bool = False
    answer_form: tuple[str, str] = ("", "")


_MATH_VERIFY = ("math_verify", "math-verify")
_BOX = ("\\boxed{", "}")

BUILT_IN = {
    # the share of positions where response and label have the same character, the end of the sequence among them
    "graded_match": BuiltIn("miles_async.rewards.builtin_rewards.graded_match", inline=True, compares_with_label=True),
    # 1 if the response is the label, white space around it aside, else 0
    "exact_match": BuiltIn("miles_async.rewards.builtin_rewards.exact_match", inline=True, compares_with_label=True),
    # the token F1 of SQuAD, from 0 to 1
    "f1": BuiltIn("miles_async.rewards.builtin_rewards.f1", inline=True, compares_with_label=True),
    # 1 if the response to a multiple-choice question chooses the right letter, else 0
    "gpqa": BuiltIn(
        "miles_async.rewards.gpqa.gpqa",
        inline=True,
        compares_with_label=True,
        instead_of_label=("correct_letter", "correct_answer", "answer_text"),
    ),
    # DAPO's: what follows the last "Answer:" compared as a text; the score is 1 or -1, acc is 1 or 0
    "dapo": BuiltIn(
        "miles_async.rewards.dapo.dapo",
        inline=True,
        compares_with_label=True,
        parts=("score", "acc"),
        reward_part="score",
        answer_form=("Answer: ", ""),
    ),
    # 0 or 1, drawn anew for every call
    "random": BuiltIn("miles_async.rewards.builtin_rewards.random", inline=True),
    # 0 or 1, always the same for the same response
    "deterministic_random": BuiltIn("miles_async.rewards.builtin_rewards.deterministic_random", inline=True),
    # 1 if the answer, in a box or not, equals the label as mathematics, else 0
    "math": BuiltIn(
        "miles_async.rewards.math_rewards.math", compares_with_label=True, needs=_MATH_VERIFY, answer_form=_BOX
    ),
    # 1 if the last box after the thinking equals the label as mathematics, else 0; without "</think>" it is 0
    "deepscaler": BuiltIn(
        "miles_async.rewards.math_rewards.deepscaler",
        compares_with_label=True,
        needs=_MATH_VERIFY,
        answer_form=("</think>\\boxed{", "}"),
    ),
    # 1 if the last box after Gemma's thinking, if there is any, equals the label as mathematics, else 0
    "gemma_math": BuiltIn(
        "miles_async.rewards.math_rewards.gemma_math", compares_with_label=True, needs=_MATH_VERIFY, answer_form=_BOX
    ),
    # what the server at reward.rm_url says
    "remote_rm": BuiltIn("miles_async.rewards.remote.remote_rm", parts=None, asks_server=True),
}


def built_in(name: str) -> BuiltIn | None:
    """The entry that ``name``, ``boxed_`` or not, means; None: it is the weighted sum, or a function of the user's."""
    return BUILT_IN.get(name.removeprefix(BOXED))


def short_name(name: str) -> str:
    """What the parts of a sum are called: a built-in's name, or that of the function without its module or file."""
    return name.replace(":", ".").rpartition(".")[2]
