"""What an engine says of its load (``GET /v1/loads``), in the one place that knows its form.

Promises: pure; whatever is not of that form is said as None, and nothing raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RankLoad:
    """One data-parallel rank. ``running``, ``waiting``: requests; ``kv_usage``: share of its cache in use; ``generated``:
    tokens since it began; ``used``: tokens in its cache; ``throughput``: tokens a second. None: it does not say."""

    running: int | None
    waiting: int | None
    kv_usage: float | None
    generated: int | None
    used: int | None
    throughput: float | None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """An engine's load over all its ranks. A sum is None where a rank does not say its part."""

    ranks: tuple[RankLoad, ...]

    @property
    def running(self) -> int | None:
        return _sum(rank.running for rank in self.ranks)

    @property
    def waiting(self) -> int | None:
        return _sum(rank.waiting for rank in self.ranks)

    @property
    def kv_usage(self) -> float | None:
        """The share of the fullest rank's KV cache that is in use."""
        shares = [rank.kv_usage for rank in self.ranks]
        return None if not shares or None in shares else max(share for share in shares if share is not None)

    @property
    def generated(self) -> int | None:
        return _sum(rank.generated for rank in self.ranks)

    @property
    def sampled(self) -> int | None:
        """The tokens generated, or those in its cache, if it counts only these."""
        return _sum(rank.used for rank in self.ranks) if self.generated is None else self.generated

    @property
    def throughput(self) -> float | None:
        return _sum(rank.throughput for rank in self.ranks)

    @property
    def progress(self) -> tuple[int, int]:
        """Whichever of the two moves, the engine is at work: tokens generated, tokens in its cache."""
        return sum(rank.generated or 0 for rank in self.ranks), sum(rank.used or 0 for rank in self.ranks)


def read_report(answer: Any) -> LoadReport | None:
    """The report in an answer of ``/v1/loads``, decoded from JSON; None: it is none."""
    ranks = answer.get("loads") if isinstance(answer, dict) else None
    if not isinstance(ranks, list) or not ranks or not all(isinstance(rank, dict) for rank in ranks):
        return None
    return LoadReport(tuple(map(_rank, ranks)))


def _rank(said: dict[str, Any]) -> RankLoad:
    return RankLoad(
        running=_whole(said.get("num_running_reqs")),
        waiting=_whole(said.get("num_waiting_reqs")),
        kv_usage=_number(said.get("token_usage")),
        generated=_whole(said.get("num_generated_tokens")),
        used=_whole(said.get("num_used_tokens")),
        throughput=_number(said.get("gen_throughput")),
    )


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer that no float holds
        return None


def _whole(value: Any) -> int | None:
    return None if (number := _number(value)) is None else int(number)


def _sum(parts: Iterable[Any]) -> Any:
    found = list(parts)
    return None if not found or None in found else sum(found)
