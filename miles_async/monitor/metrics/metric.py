"""What is declared of one metric. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Metric:
    """``name``: as in ``metrics.jsonl``; ``{word}`` in it stands for a name of the run's own (an engine, a reason, ...).

    ``unit``: of its values, "share" for 0 to 1. ``says``: what it is, for a reader. ``miles``: the name of the same number in
    Miles, with its group; empty where Miles has none.
    """

    name: str
    unit: str
    says: str
    miles: str = ""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        literals = re.split(r"\{\w+\}", self.name)
        return re.compile("(.+)".join(map(re.escape, literals)))

    def is_called(self, name: str) -> bool:
        """Whether ``name``, as it stands in a record, is one of this metric's."""
        return self._pattern.fullmatch(name) is not None

    def words(self, name: str) -> dict[str, str] | None:
        """What stands in ``name`` for each ``{word}``; None: it is not one of this metric's."""
        found = self._pattern.fullmatch(name)
        return None if found is None else dict(zip(re.findall(r"\{(\w+)\}", self.name), found.groups(), strict=True))
