"""The samples of a step as rows, and which of them are asked for, in which order. Pure.

Promises: a row tells its sample's place among all of the step, whatever is filtered; a search looks at the whole prompt and the
whole response; what has no such value comes last, in either order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from bus.codec import MASK, TOKENS, unpack
from bus.messages import UNSAMPLED, Group, Sample
from bus.ready import by_version
from miles_async.groups.ages import ages

Key = Literal["place", "reward", "length", "lag"]
KEYS: tuple[Key, ...] = ("place", "reward", "length", "lag")


class Row(msgspec.Struct, frozen=True):
    """One sample of a step. ``lag``: versions that its oldest token is behind the learner; None: no policy sampled it."""

    place: int
    group: str
    index: int
    prompt: str
    response: str
    reward: float | None
    parts: dict[str, float]
    length: int  # tokens of the response
    trained: int  # of them, those that the policy wrote
    lag: int | None
    ages: dict[str, int]  # of its group, in versions, by the names of groups/ages.py; those that are known
    versions: list[tuple[int, int]]  # weight version, tokens that it sampled
    finish: str
    label: str | None
    seconds: float  # that the group took


class Wanted(msgspec.Struct, frozen=True):
    """Which rows. The bounds include their ends; ``text`` is looked for without regard to case."""

    text: str = ""
    finish: str = ""
    sort: Key = "place"
    descending: bool = False
    reward_min: float = -math.inf
    reward_max: float = math.inf
    length_min: float = -math.inf
    length_max: float = math.inf
    lag_min: float = -math.inf
    lag_max: float = math.inf


def row(place: int, group: Group, sample: Sample, step: int, prompt: str, response: str) -> Row:
    """The row of a sample that step ``step`` trained on."""
    versions = [(version, count) for version, count in by_version(sample.versions) if version != UNSAMPLED]
    return Row(
        place=place,
        group=group.group_id,
        index=sample.index,
        prompt=prompt,
        response=response,
        reward=sample.reward if math.isfinite(sample.reward) else None,
        parts={name: value for name, value in sample.reward_parts.items() if math.isfinite(value)},
        length=len(sample.tokens) // TOKENS.itemsize,
        trained=int(unpack(sample.loss_mask, MASK).sum()),
        lag=step - 1 - versions[0][0] if versions else None,
        ages=ages(group.begun, None, step - 1),
        versions=versions,
        finish=sample.finish_reason,
        label=group.label,
        seconds=group.finished - group.started,
    )


def chosen(rows: Sequence[Row], wanted: Wanted) -> list[Row]:
    """Those that ``wanted`` asks for, in its order."""
    text = wanted.text.casefold()
    found = [one for one in rows if _is_wanted(one, wanted, text)]
    without = [one for one in found if getattr(one, wanted.sort) is None]
    rest = [one for one in found if getattr(one, wanted.sort) is not None]
    return sorted(rest, key=lambda one: getattr(one, wanted.sort), reverse=wanted.descending) + without


def _is_wanted(one: Row, wanted: Wanted, text: str) -> bool:
    return (
        (not text or text in one.prompt.casefold() or text in one.response.casefold())
        and (not wanted.finish or one.finish == wanted.finish)
        and _within(one.reward, wanted.reward_min, wanted.reward_max)
        and _within(one.length, wanted.length_min, wanted.length_max)
        and _within(one.lag, wanted.lag_min, wanted.lag_max)
    )


def _within(value: float | None, least: float, greatest: float) -> bool:
    """A value that is not known is within no bounds but those that hold everything."""
    if value is None:
        return least == -math.inf and greatest == math.inf
    return least <= value <= greatest


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What a filter can be set to: the least and the greatest of each value, and how the samples ended."""
    found: dict[str, Any] = {"finishes": sorted({one.finish for one in rows})}
    for key in ("reward", "length", "lag"):
        values = [value for one in rows if (value := getattr(one, key)) is not None]
        found[key] = [min(values), max(values)] if values else None
    return found
