"""What a staleness policy makes of a trace where nothing but generation, training and weight updates takes time.

    admit ──► SLOTS groups are generated ──► ready ──select──► one batch is trained at a time ──► update of the engines
      ▲ serving version                                                                             │ generation pauses
      └─────────────────────────────────────────────────────────────────────────────────────────────┘

Promises: pure, in events; it asks the policy object that a run asks, for the same decisions; groups begin in dealt order, a
group that is being generated goes on over an update with the new weights; the learner waits for no update, and an update that
comes during another one follows it, with the newest version.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from bus.messages import ReadyGroup
from miles_async.staleness.policies import StalenessPolicy, StalenessState, too_old

TICK_S = 1e-4  # stands for a token
NEVER = float("inf")


class StuckError(RuntimeError):
    """The policy waits for something that waits for the policy."""


class World(NamedTuple):
    """What the policy is confronted with. Times in seconds."""

    seconds: Callable[[int], float]  # of the generation of the group dealt at a position
    train_s: Callable[[int], float]  # of a step, from 1 on
    batch_size: int
    slots: int
    steps: int
    update_s: float


@dataclass
class Outcome:
    """When each step ended, and what it trained on: the positions, the greatest lag of a token that was, and the share of their
    generation that was masked; what was dropped."""

    step_ends: list[float] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)
    masked: list[float] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    sizes: list[int] = field(
        default_factory=list
    )  # groups of each step: of several batches where its weights were held


def schedule(policy: StalenessPolicy, world: World) -> Outcome:
    """The run of ``world.steps`` steps. Raises StuckError."""
    return _Run(policy, world).outcome()


class _Run:
    def __init__(self, policy: StalenessPolicy, world: World) -> None:
        self._policy, self._world, self._outcome = policy, world, Outcome()
        self._now = 0.0
        self._dealt = self._batched = 0
        self._open: dict[int, None] = {}  # positions, in dealt order
        self._waiting: deque[int] = deque()
        # (end, position, begin), in time without the pauses
        self._running: list[tuple[float, int, float]] = []
        self._served: list[tuple[float, int]] = [(0.0, 0)]  # since when the engines have served a version, in that time
        self._ready: dict[int, ReadyGroup] = {}
        self._version = self._serving = self._updating_to = 0
        self._trained_at = self._updated_at = NEVER
        self._ticks, self._batches = True, 0  # whether the weights change with the batch; how many the step has
        self._paused_s = 0.0

    def outcome(self) -> Outcome:
        while len(self._outcome.step_ends) < self._world.steps:
            self._decide()
            generated_at = self._running[0][0] + self._paused_s if self._running else NEVER
            self._now = min(generated_at, self._trained_at, self._updated_at)
            if self._now == NEVER:
                raise StuckError(f"nothing goes on at version {self._version}: {len(self._ready)} groups are ready")
            if self._now == self._updated_at:
                self._serving, self._updated_at = self._updating_to, NEVER
            elif self._now == self._trained_at:
                self._trained_at = NEVER
                if self._ticks:
                    self._version += 1
                    self._outcome.step_ends.append(self._now)
            else:
                self._generated(*heapq.heappop(self._running))
            if self._updated_at == NEVER and self._serving < self._version:
                self._updating_to, self._updated_at = self._version, self._now + self._world.update_s
                self._paused_s += self._world.update_s
                self._served.append((self._updated_at - self._paused_s, self._version))
        return self._outcome

    def _decide(self) -> None:
        """All that may happen now: a batch, admission, groups that begin."""
        if self._trained_at == NEVER:
            self._evict()
            self._select()
        state = StalenessState(self._batched, len(self._open), self._world.batch_size, self._serving, self._world.steps)
        for _ in range(self._policy.admit(state)):
            self._open[self._dealt] = None
            self._waiting.append(self._dealt)
            self._dealt += 1
        updating = self._updated_at != NEVER
        begin = (self._updated_at if updating else self._now) - self._paused_s
        while self._waiting and len(self._running) < self._world.slots:
            position = self._waiting.popleft()
            heapq.heappush(self._running, (begin + self._world.seconds(position), position, begin))

    def _generated(self, end: float, position: int, begin: float) -> None:
        versions = self._sampled_by(begin, end)
        first, last, length = versions[0][0], versions[-1][0], sum(count for _, count in versions)
        self._ready[position] = ReadyGroup(str(position), "", first, last, length, self._now, versions=versions)

    def _sampled_by(self, begin: float, end: float) -> tuple[tuple[int, int], ...]:
        """The versions that were served between two times, each with its share, in units of TICK_S, at least one."""
        spans: list[tuple[int, int]] = []
        until = end
        for since, version in reversed(self._served):
            if since < until or since <= begin:
                spans.append((version, max(1, round((until - max(since, begin)) / TICK_S))))
            if since <= begin:
                break
            until = since
        return tuple(reversed(spans))

    def _evict(self) -> None:
        for group_id, _ in self._policy.evict(list(self._ready.values()), self._version):
            self._outcome.dropped.append(int(group_id))
            del self._ready[int(group_id)], self._open[int(group_id)]

    def _select(self) -> None:
        order = [str(position) for position in self._open]
        chosen = self._policy.select(list(self._ready.values()), order, self._version, self._world.batch_size)
        if chosen is None:
            return
        batch = [int(group_id) for group_id in chosen]
        self._outcome.batches.append(batch)
        groups, bound = [self._ready[position] for position in batch], self._policy.max_lag
        lag = max(self._version - group.oldest_version for group in groups)
        masked = sum(too_old(group, self._version, bound) for group in groups) if self._policy.masks else 0
        self._outcome.lags.append(min(lag, bound) if masked else lag)
        self._outcome.masked.append(masked / sum(group.n_tokens for group in groups))
        for position in batch:
            del self._ready[position], self._open[position]
        if self._ticks:
            self._batched, self._batches = self._batched + 1, 0
            self._outcome.sizes.append(0)
        self._batches += 1
        self._outcome.sizes[-1] += len(batch)
        self._ticks = self._batched >= self._world.steps or self._policy.ticks(
            self._oldest_of_the_open(), self._version, self._batches
        )
        self._trained_at = self._now + self._world.train_s(self._batched)

    def _oldest_of_the_open(self) -> list[int]:
        """The version of the first token of each open group, and the one that would sample those that have none yet."""
        versions = [group.oldest_version for group in self._ready.values()]
        versions += [self._sampled_by(begin, begin)[0][0] for _, _, begin in self._running]
        return [*versions, self._serving]
