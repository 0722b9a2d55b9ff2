"""How many tokens a second each engine generates, from what it says of its load when it is asked for other reasons. Pure.

Promises: nobody is asked for this; of an engine that counts its tokens it is what it counted between two answers, over the time
between these, and where the count began anew nothing is said; one that does not count (SGLang) is taken at its word while it
has requests, and gives none while it has none; nothing is said twice of one answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from miles_async.engines.loads import LoadReport
from miles_async.router.engine import RoutedEngine
from miles_async.router.observe.loads import LoadPoller, Said

LEAST_S = 0.5  # between two counts: closer ones say more of when they were asked for than of the engine


class Pace(NamedTuple):
    """``running``: samples that it generates tokens for. None: it does not say, or nothing can be said yet."""

    running: int | None
    tokens_per_s: float | None


class Paces:
    """The memory of one router."""

    def __init__(self) -> None:
        self._last: dict[RoutedEngine, Said] = {}

    def look(self, engines: Iterable[RoutedEngine], loads: LoadPoller) -> dict[RoutedEngine, Pace]:
        """Of those of ``engines`` that have said something since the last look. The others of the last look are forgotten."""
        last, self._last, found = self._last, dict[RoutedEngine, Said](), dict[RoutedEngine, Pace]()
        for engine in engines:
            before, said = last.get(engine), loads.latest(engine)
            if said is not None and (before is None or said.asked_at - before.asked_at >= LEAST_S):
                self._last[engine] = said
                found[engine] = Pace(said.report.running, tokens_per_s(before, said))
            elif before is not None:
                self._last[engine] = before
        return found


def tokens_per_s(before: Said | None, said: Said) -> float | None:
    """What the engine generated between two answers; ``before`` None: there was none."""
    report = said.report
    if report.generated is None:
        return _own_word(report)
    if before is None or before.report.generated is None or report.generated < before.report.generated:
        return None
    return (report.generated - before.report.generated) / (said.asked_at - before.asked_at)


def _own_word(report: LoadReport) -> float | None:
    """SGLang measures it now and then while it decodes, and goes on saying it when it has nothing left."""
    return 0.0 if report.running == 0 else report.throughput
