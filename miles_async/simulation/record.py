"""What a simulation leaves: sums over its steps behind the warm-up, and each step's figures if they are wanted.

Promises: the names are those of a run's metrics (docs/metrics.md) and summary; nothing grows with the number of groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bus.messages import ReadyGroup
from miles_async.simulation.samples import SimulatedGroup


@dataclass
class Record:
    """Times in seconds of the simulation."""

    warmup_steps: int
    max_lag: int | None  # tokens beyond it are masked; None: none are
    timeline: bool = False
    began: float = 0.0  # when the warm-up ended
    ended: float = 0.0  # of the last step
    steps: int = 0  # that count
    train_s: float = 0.0
    wait_s: float = 0.0
    groups: int = 0
    samples: int = 0
    tokens: int = 0  # that were trained on
    masked: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # groups, by reason
    dropped_tokens: int = 0  # that were made of them
    lag_tokens: Counter[int] = field(default_factory=Counter)  # versions -> tokens
    lag_groups: Counter[int] = field(default_factory=Counter)  # versions of the oldest token -> groups
    trained_lengths: Counter[int] = field(default_factory=Counter)
    dispatched_lengths: Counter[int] = field(default_factory=Counter)
    mixed: int = 0  # samples of more than one version
    batches: int = 0
    publish_lag: int = 0  # summed over steps
    lines: list[dict[str, Any]] = field(default_factory=list)
    _parts: list[dict[str, float]] = field(default_factory=list)  # of the step under way: its batches

    @property
    def counts(self) -> bool:
        """Whether what happens now is behind the warm-up."""
        return self.steps > 0 or self.began > 0.0 or not self.warmup_steps

    def drop(self, group: SimulatedGroup, reason: str, tokens: int, *, whole: bool) -> None:
        """``tokens`` of it had been made; whole: all."""
        if self.counts:
            self.dropped[reason] += 1
            self.dropped_tokens += tokens
            if whole:
                self.dispatched_lengths.update(group.drawn.lengths)

    def batch(
        self, groups: Sequence[SimulatedGroup], ready: Sequence[ReadyGroup], version: int, serving: int | None
    ) -> None:
        """What the step trains on, or a part of it."""
        lags: Counter[int] = Counter()
        oldest: Counter[int] = Counter()
        bound = self.max_lag
        masked = mixed = samples = 0
        for found in ready:
            for sampled, tokens in found.versions:
                if bound is not None and version - sampled > bound:
                    masked += tokens
                else:
                    lags[version - sampled] += tokens
            lag = version - found.oldest_version
            oldest[lag if bound is None else min(lag, bound)] += 1
        for group in groups:
            samples += len(group.drawn.lengths)
            for request in group.requests:
                mixed += sum(len(s.spans) > 1 and len(set(v for v, _ in s.spans)) > 1 for s in request.samples)
        total = lags.total()
        if self.timeline:
            part = {
                "n_samples": samples,
                "n_tokens": total,
                "masked_tokens": masked,
                "max_token_lag": max(lags, default=0),
                "mean_token_lag": _mean(lags),
                "mixed_version_ratio": mixed / samples,
                "response_lengths": (total + masked) / samples,
                "weights/publish_lag": version - (version if serving is None else serving),
            }
            self._parts.append(part)
        if not self.counts:
            return
        self.batches += 1
        self.groups += len(groups)
        self.samples += samples
        self.tokens += total
        self.masked += masked
        self.mixed += mixed
        self.lag_tokens += lags
        self.lag_groups += oldest
        self.publish_lag += version - (version if serving is None else serving)
        for group in groups:
            self.trained_lengths.update(group.drawn.lengths)

    def step(self, step: int, now: float, train_s: float, wait_s: float, dropped: Counter[str]) -> None:
        """A step has ended. ``dropped``: groups so far, by reason."""
        if self.timeline:
            perf = {
                "perf/train_time": train_s,
                "perf/train_wait_time": wait_s,
                "perf/step_time": train_s + wait_s,
            }
            drops = {f"drops/{reason}": count for reason, count in sorted(dropped.items())}
            values = of_all_parts(self._parts) | perf | drops
            self.lines.append({"actor": "learner-0", "step": step, "time": now, "values": values})
            self._parts.clear()
        if self.counts:
            self.steps += 1
            self.train_s += train_s
            self.wait_s += wait_s
            self.ended = now
        elif step == self.warmup_steps:
            self.began = now


def of_all_parts(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """A step's figures from those of its batches, which are equally large."""
    found = {name: sum(part[name] for part in parts) for name in ("n_samples", "n_tokens", "masked_tokens")}
    found["max_token_lag"] = max(part["max_token_lag"] for part in parts)
    tokens = found["n_tokens"] or 1
    found["mean_token_lag"] = sum(part["mean_token_lag"] * part["n_tokens"] for part in parts) / tokens
    for name in ("mixed_version_ratio", "response_lengths", "weights/publish_lag"):
        found[name] = sum(part[name] for part in parts) / len(parts)
    return found | {"batches": len(parts)}


def _mean(counts: Counter[int]) -> float:
    total = counts.total()
    return sum(value * count for value, count in counts.items()) / total if total else 0.0
