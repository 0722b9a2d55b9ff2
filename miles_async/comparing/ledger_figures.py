"""What a run's transitions say of its tokens: how old they were when they were trained, and how many were made for nothing.
Pure.

Promises: the names and meanings are those of a simulation (docs/simulator.md); a group counts as it was batched last; a token
beyond the bound is masked, and wasted; what was never published has no length on record, and does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from bus.messages import UNSAMPLED
from miles_async.monitor.record_lines import TransitionLine

Versions = tuple[tuple[int, int], ...]  # (weight version, tokens that it sampled)


def ledger_figures(lines: Iterable[TransitionLine], bound: int | None) -> dict[str, Any]:
    """``lag_tokens`` and ``lag_groups``: shares by versions behind; ``wasted_share``. Empty where nothing was trained.

    bound: versions, beyond which tokens are masked; None: none are.
    """
    versions: dict[str, Versions] = {}
    trained: dict[int, list[Versions]] = {}
    dropped = 0
    for line in lines:
        if line.kind == "published":
            versions[line.groups[0]] = line.versions
        elif line.kind == "batched":
            trained[line.step] = []
        elif line.kind == "dropped":
            for group in line.groups:
                known = sum(count for _, count in versions.pop(group, ()))
                dropped += sum(line.lengths) or known
        if line.kind in ("batched", "extended") and line.step in trained:
            trained[line.step] += [versions.pop(group, ()) for group in line.groups]
    return _shares(trained, bound, dropped)


def _shares(trained: dict[int, list[Versions]], bound: int | None, dropped: int) -> dict[str, Any]:
    tokens, groups, masked = Counter[int](), Counter[int](), 0
    for step, batch in trained.items():
        for found in batch:
            lags = [(step - 1 - version, count) for version, count in found if version != UNSAMPLED]
            kept = [(lag, count) for lag, count in lags if bound is None or lag <= bound]
            masked += sum(count for _, count in lags) - sum(count for _, count in kept)
            for lag, count in kept:
                tokens[lag] += count
            if kept:
                groups[max(lag for lag, _ in kept)] += 1
    if not tokens:
        return {}
    made = tokens.total() + masked + dropped
    return {
        "lag_tokens": _parts(tokens),
        "lag_groups": _parts(groups),
        "wasted_share": round((masked + dropped) / made, 6),
    }


def _parts(counts: Counter[int]) -> dict[str, float]:
    total = counts.total()
    return {str(lag): round(count / total, 6) for lag, count in sorted(counts.items())}
