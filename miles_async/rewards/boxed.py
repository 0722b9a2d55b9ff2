"""The last ``\\boxed{...}`` of a response, and the prefix ``boxed_``: a built-in that is given only what stands in it.

Promises: linear in the length of the response; a box that does not close (a response cut off) is no box, and no earlier one
takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from miles_async.rewards.sample import RewardSample

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are printed, they group nothing


def last_boxed(text: str) -> str | None:
    """What stands in the last ``\\boxed{...}`` or ``\\fbox{...}`` of ``text``, braces balanced; None: there is none."""
    start = -1
    for box in BOX.finditer(text):
        start = box.end()
    if start < 0:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()]
    return None


def unboxed(label: str | None) -> str | None:
    """What stands in the box that all of ``label`` is; the label, if it is none."""
    box = BOX.match(label.strip()) if label is not None else None
    content = last_boxed(label) if label is not None and box is not None else None
    return content if content is not None and label is not None and label.strip().endswith(f"{content}}}") else label


def boxed(function: Callable[..., Any], answer_form: tuple[str, str]) -> Callable[..., Any]:
    """The built-in ``function`` with the content of the last box in the response's place.

    answer_form: what it wants to see before and after an answer, so that it grades the content as one; without a box it is
    given an empty response. Further arguments are passed on.
    """
    before, after = answer_form

    def reward(sample: RewardSample, *args: Any, **kwargs: Any) -> Any:
        content = last_boxed(sample.response)
        response = "" if content is None else f"{before}{content}{after}"
        bare = msgspec.structs.replace(sample, response=response, raw_response="", label=unboxed(sample.label))
        return function(bare, *args, **kwargs)

    return reward
