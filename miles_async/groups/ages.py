"""How old the weights were that a group was made with: when it was asked for, when it began, when it was trained. Pure.

The *age* at a moment is the learner's version then, minus that of the weights. It only grows: at its submission it is what
publishing costs, then waiting for an engine adds to it, then generating, and waiting to be trained.
"""

from __future__ import annotations

from collections.abc import Mapping

from bus.messages import Begun

AGES = {
    "submission": "that the engine furthest behind was behind the learner when the group was asked for",
    "first_token": "that the weights which sampled its first token were behind the learner then",
    "training": "that the weights which sampled the oldest of its tokens are behind the learner that trains it",
    "since_submission": "from what engines served when it was asked for, to the learner that trains it",
}


def ages(begun: Begun, oldest: int | None, version: int | None) -> dict[str, int]:
    """In versions, by the names of ``AGES``; what is not known is left out.

    oldest: the version of the oldest token; None: no policy sampled it. version: the learner's that trains it; None: none has.
    """
    found: dict[str, int] = {}
    if begun.learner >= 0 and begun.engines >= 0:
        found["submission"] = begun.learner - begun.engines
    if begun.first_token >= 0 and begun.sampled_by >= 0:
        found["first_token"] = begun.first_token - begun.sampled_by
    if version is not None and oldest is not None:
        found["training"] = version - oldest
    if version is not None and begun.engines >= 0:
        found["since_submission"] = version - begun.engines
    return found


def shown(found: Mapping[str, int]) -> str:
    """A line for people; empty: nothing is known."""
    words = ", ".join(f"{name.replace('_', ' ')} {age}" for name, age in found.items())
    return f"ages in versions: {words}" if words else ""
