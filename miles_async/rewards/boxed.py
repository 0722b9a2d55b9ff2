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

PREFIX = "boxed_"

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are printed, they group nothing

# the form in which a reward looks for the answer; the others are given the bare content
_SHOWN_AS: dict[str, tuple[str, str]] = {
    "math": ("\\boxed{", "}"),
    "gemma_math": ("\\boxed{", "}"),
    "deepscaler": ("</think>\\boxed{", "}"),
    "dapo": ("Answer: ", ""),
}


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


def boxed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The built-in ``name``, of which ``function`` is the code, with the content of the last box in the response's place.

    It grades the content as its answer, in whatever form it looks for one; without a box it is given an empty response.
    Further arguments are passed on.
    """
    before, after = _SHOWN_AS.get(name, ("", ""))

    def reward(sample: RewardSample, *args: Any, **kwargs: Any) -> Any:
        content = last_boxed(sample.response)
        response = "" if content is None else f"{before}{content}{after}"
        bare = msgspec.structs.replace(sample, response=response, raw_response="", label=unboxed(sample.label))
        return function(bare, *args, **kwargs)

    return reward
