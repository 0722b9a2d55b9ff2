"""What each engine of a run does, as its router last reported of it. Pure.

Promises: an engine that the router reports of no more has no figures, instead of those that it left with; what was not said is
not a number, and what was said once stays until it is said again: an engine's tokens are known less often than that it is busy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

PREFIX = "engine_"  # of the metrics; then a field of EngineFigures, a slash, and the engine


class EngineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """busy: share of the time. requests_per_s: answered. running: samples. nan: not said."""

    busy: float
    requests_per_s: float = math.nan
    running: float = math.nan
    tokens_per_s: float = math.nan


def figures(known: Mapping[str, EngineFigures], values: Mapping[str, float]) -> dict[str, EngineFigures]:
    """By engine, after a router's report of ``values`` by their metrics' names; ``known``: what they were before."""
    said: dict[str, dict[str, float]] = {}
    for metric, value in values.items():
        field, slash, engine = metric.removeprefix(PREFIX).partition("/")
        if slash and metric.startswith(PREFIX) and field in EngineFigures.__struct_fields__:
            said.setdefault(engine, {})[field] = value
    of_each: dict[str, EngineFigures] = {}
    for engine, fields in said.items():
        if "busy" in fields:  # which it says of every engine that it has
            before = msgspec.structs.asdict(known[engine]) if engine in known else {}
            of_each[engine] = EngineFigures(**{**before, **fields})
    return of_each


def pace(running: float | None, tokens_per_s: float | None) -> str:
    """``8 running, 1,234 tokens/s``, as far as it is known (not None, and a number)."""
    said = ((running, "{:,.0f} running"), (tokens_per_s, "{:,.0f} tokens/s"))
    return ", ".join(form.format(value) for value, form in said if value is not None and math.isfinite(value))
