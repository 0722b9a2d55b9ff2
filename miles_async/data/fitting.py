"""Which prompts a run can use: those that are short enough.

Promises: what is left out is counted and said; a source of which nothing is left is refused with its name. Pure but for the
log.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from miles_async.data.prompt import DataError, Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """The prompts of a run, numbered from 0, and how many were read and left out."""

    prompts: list[Prompt]
    read: int
    left_out: int

    def __str__(self) -> str:
        return f"{self.read} prompts read" + (f", {self.left_out} left out as too long" if self.left_out else "")


def short_enough(prompts: list[Prompt], names: Sequence[str], limit: int | None, context: int | None) -> Loaded:
    """Those of at most ``limit`` tokens that leave room for a response in ``context`` tokens (None: no limit).

    names: of the sources, by number. Raises DataError: there is no prompt, or a source has none that is left.
    """
    if not prompts:
        raise DataError(f"{', '.join(names)}: there is no prompt")
    most, why = limit, f"data.rollout_max_prompt_len{'' if limit is None else f' = {limit}'}"
    if context is not None and (most is None or context <= most):
        most, why = context - 1, f"{context - 1} tokens, which leave room for a response in a context of {context}"
    if most is None:
        return Loaded(prompts, len(prompts), 0)
    kept = [prompt for prompt in prompts if len(prompt.tokens) <= most]
    left = Counter(prompt.source for prompt in kept)
    for source, count in Counter(prompt.source for prompt in prompts).items():
        if not left[source]:
            name = names[source] if source < len(names) else f"{names[0]}: source {source}"
            raise DataError(f"{name}: all {count} prompts exceed {why}")
    if len(kept) < len(prompts):
        log.info("%s: left out %d prompts of more than %d tokens", ", ".join(names), len(prompts) - len(kept), most)
    renumbered = [prompt if prompt.index == i else replace(prompt, index=i) for i, prompt in enumerate(kept)]
    return Loaded(renumbered, len(prompts), len(prompts) - len(kept))
