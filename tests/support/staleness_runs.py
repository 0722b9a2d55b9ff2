"""Asynchronous runs under a staleness policy, simulated by events."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from bus.messages import ReadyGroup
from miles_async.staleness.policies import NO_BOUND, StalenessPolicy, StalenessState, bound_of, is_outdated, too_old

TOKENS = 2  # of a group


@dataclass
class Result:
    """What a simulated run did. ``batches``: for each step the numbers of its groups, in the order in which they were dealt."""

    batches: list[list[int]] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)
    dropped: int = 0
    outdated: int = 0  # of these, while they were generated
    refused: int = 0  # by a filter, as soon as they were generated
    surplus: int = 0
    masked: int = 0  # tokens
    lost: int = 0  # attempts at a group that ended with their engine
    open: list[int] = field(default_factory=list)  # groups at the end, as in batches
    generated: int = 0  # tokens of all groups that were finished
    thrown: int = 0  # tokens of those that were dropped, whatever for
    ready: int = 0  # tokens of those that were left at the end
    max_open: int = 0
    duration: float = 0.0
    started_at: list[int] = field(default_factory=list)  # the learner's version when a group was dealt
    prompts: list[int] = field(default_factory=list)  # of each group that was dealt
    again: list[int] = field(default_factory=list)  # prompts that were still to be dealt again at the end

    def check_closed(self) -> None:
        """Each group and each token is in one place."""
        trained = sum(map(len, self.batches))
        assert len(self.started_at) == trained + self.dropped + self.refused + self.surplus + len(self.open)
        assert self.generated == len(self.lags) + self.masked + self.thrown + self.ready
        assert self.ready <= TOKENS * len(self.open)


def simulate(policy: StalenessPolicy, **world: Any) -> Result:
    """A run by events: engines of their own pace with in-flight updates, delayed and skipped pushes, a slow learner, a filter
    that refuses a share ``refuse`` of the groups, and ``deaths`` of engines, one or all of them, in a share of the steps.

    A group has two tokens: one of the version that its engine serves at its start, and one of that at its end.
    """
    return _Run(policy, **world).run()


class _Run:
    def __init__(
        self,
        policy: StalenessPolicy,
        *,
        seed: int,
        batch_size: int,
        steps: int,
        engines: int,
        slots: int,
        update_interval: int,
        refuse: float = 0.0,
        deaths: float = 0.0,
        slow: float = 1.0,
    ) -> None:
        self.policy, self.batch_size, self.steps, self.interval = policy, batch_size, steps, update_interval
        self.refuse, self.deaths, self.slow, self.rng = refuse, deaths, slow, random.Random(seed)
        self.bound = bound_of(policy)
        self.result = Result()
        self.events: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self.clock, self.count = 0.0, 0
        self.version = self.newest_push = self.parts = self.prompt = 0
        self.serving = [0] * engines
        self.lives = [0] * engines
        self.down: set[int] = set()
        self.slots = slots
        self.free = [(engine, slot) for engine in range(engines) for slot in range(slots)]
        self.order: list[str] = []  # open groups in dealt order
        self.waiting: list[str] = []
        self.running: dict[str, tuple[int, int]] = {}  # its engine, and the version of its first token
        self.ready: list[ReadyGroup] = []
        self.again: deque[int] = deque()  # prompts
        self.training, self.ticks = False, True

    def run(self) -> Result:
        result = self.result
        while len(result.batches) < self.steps or self.training or not self.ticks:
            state = self.deal()
            self.begin()
            if not self.training and (self.evict() or self.choose()):
                continue  # either makes room, which the dealer has to see
            assert self.events, f"deadlock at version {self.version}: {state}, {len(self.ready)} ready"
            self.clock, _, kind, data = heapq.heappop(self.events)
            getattr(self, kind)(*data)
        result.duration, result.open, result.again = self.clock, [*map(int, self.order)], [*self.again]
        result.ready = TOKENS * len(self.ready)
        return result

    def at(self, delay: float, kind: str, *data: object) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.clock + delay, self.count, kind, data))

    # what the policy decides

    def oldest_serving(self) -> int | None:
        return min((v for engine, v in enumerate(self.serving) if engine not in self.down), default=None)

    def deal(self) -> StalenessState | None:
        if (serving := self.oldest_serving()) is None:
            return None
        batched = len(self.result.batches)
        state = StalenessState(batched, len(self.order), self.batch_size, serving, self.steps)
        for _ in range(self.policy.admit(state)):
            number = str(len(self.result.started_at))
            self.order.append(number)
            self.waiting.append(number)
            self.result.started_at.append(self.version)
            self.result.prompts.append(self.again.popleft() if self.again else self.prompt)
            self.prompt = max(self.prompt, self.result.prompts[-1] + 1)
        self.result.max_open = max(self.result.max_open, len(self.order))
        return state

    def begin(self) -> None:
        self.rng.shuffle(self.free)
        while self.free and self.waiting:
            engine, slot = self.free.pop()
            group_id, version = self.waiting.pop(0), self.serving[engine]
            self.running[group_id] = engine, version
            pace = self.slow if engine == 0 else 1.0
            self.at(
                pace * self.rng.lognormvariate(0, 1.2), "finished", group_id, version, engine, slot, self.lives[engine]
            )

    def evict(self) -> bool:
        stale = dict(self.policy.evict(self.ready, self.version))
        assert set(stale.values()) <= {"stale"}
        self.result.dropped += len(stale)
        self.deal_again(stale)
        self.remove(stale)
        return bool(stale)

    def deal_again(self, dropped: Iterable[str]) -> None:
        if self.policy.requeues:
            self.again.extend(self.result.prompts[int(group_id)] for group_id in dropped)

    def remove(self, gone: Any) -> None:
        """Dropped, with the tokens that were made of them."""
        self.result.thrown += TOKENS * sum(group.group_id in gone for group in self.ready)
        self.leave(gone)

    def leave(self, gone: Any) -> None:
        self.order = [group_id for group_id in self.order if group_id not in gone]
        self.waiting = [group_id for group_id in self.waiting if group_id not in gone]
        self.ready = [group for group in self.ready if group.group_id not in gone]

    def choose(self) -> bool:
        result, policy = self.result, self.policy
        more = len(result.batches) < self.steps or not self.ticks
        chosen = policy.select(self.ready, self.order, self.version, self.batch_size) if more else None
        if chosen is None:
            return False
        if self.ticks:
            result.batches.append([])
            self.parts = 0
        result.batches[-1] += [int(group_id) for group_id in chosen]
        self.parts += 1
        by_id = {group.group_id: group for group in self.ready}
        self.train([by_id[group_id] for group_id in chosen])
        self.leave(chosen)
        surplus = self.order[: policy.surplus]  # as the ledger drops them
        result.surplus += len(surplus)
        self.remove(surplus)
        serving = self.oldest_serving()
        serving = self.version if serving is None else serving
        oldest = [serving, *(self.running[g][1] if g in self.running else serving for g in self.order)]
        oldest += [group.oldest_version for group in self.ready]
        self.ticks = len(result.batches) >= self.steps or policy.ticks(oldest, self.version, self.parts)
        self.training = True
        self.at(self.rng.uniform(0.1, 2), "trained")
        return True

    def train(self, groups: list[ReadyGroup]) -> None:
        version, bound = self.version, self.bound
        sampled = [v for group in groups for v, count in group.versions for _ in range(count)]
        assert all(v <= version for v in sampled)
        if self.policy.masks:
            assert all(version - group.newest_version <= bound for group in groups), "nothing of it is left"
            self.result.masked += sum(too_old(group, version, bound) for group in groups)
            sampled = [v for v in sampled if version - v <= bound]
        self.result.lags += [version - v for v in sampled]
        assert bound == NO_BOUND or all(version - v <= bound for v in sampled)

    # what happens

    def trained(self) -> None:
        self.training = False
        if not self.ticks:
            return
        self.version += 1
        ended = {g for g, (_, oldest) in self.running.items() if is_outdated(self.policy, oldest, self.version)}
        ended &= {*self.order}
        self.result.outdated += len(ended)
        self.result.dropped += len(ended)
        self.deal_again(sorted(ended, key=int))
        self.order = [group_id for group_id in self.order if group_id not in ended]
        if self.version % self.interval == 0:
            self.newest_push = self.version
            for engine in range(len(self.serving)):
                self.at(self.rng.uniform(0, 1.5), "pushed", engine)
        if self.deaths and self.rng.random() < self.deaths:
            engines = range(len(self.serving))
            for engine in [self.rng.choice(engines)] if self.rng.random() < 0.7 else engines:
                self.die(engine)

    def pushed(self, engine: int) -> None:
        self.serving[engine] = self.newest_push  # a push that was overtaken brings the newest

    def die(self, engine: int) -> None:
        """What it generates is made again from the start, by others; where all die it is as if the run were launched again."""
        if engine in self.down:
            return
        self.down.add(engine)
        self.lives[engine] += 1
        self.free = [place for place in self.free if place[0] != engine]
        lost = [group_id for group_id, (its, _) in self.running.items() if its == engine]
        self.result.lost += len(lost)
        for group_id in lost:
            del self.running[group_id]
        self.waiting = sorted([*self.waiting, *(g for g in lost if g in self.order)], key=int)
        self.at(self.rng.uniform(0.1, 3), "back", engine)

    def back(self, engine: int) -> None:
        """It has the newest weights before it gets work."""
        self.down.remove(engine)
        self.serving[engine] = self.newest_push
        self.free += [(engine, slot) for slot in range(self.slots)]

    def finished(self, group_id: str, oldest: int, engine: int, slot: int, life: int) -> None:
        if life != self.lives[engine]:
            return  # it died with its engine
        newest = self.serving[engine]
        self.free.append((engine, slot))
        del self.running[group_id]
        self.result.generated += TOKENS
        refused = self.refuse and group_id in self.order and self.rng.random() < self.refuse
        if refused or group_id not in self.order:  # else dropped while it was generated
            self.order = [other for other in self.order if other != group_id]
            self.result.refused += bool(refused)
            self.result.thrown += TOKENS
            return
        versions = ((oldest, TOKENS),) if newest == oldest else ((oldest, 1), (newest, 1))
        self.ready.append(
            ReadyGroup(
                group_id=group_id,
                payload_key="",
                oldest_version=oldest,
                newest_version=newest,
                n_tokens=TOKENS,
                published=self.clock,
                versions=versions,
            )
        )


runs = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "batch_size": st.integers(1, 5),
        "steps": st.integers(1, 12),
        "engines": st.integers(1, 4),
        "slots": st.integers(1, 4),
    }
)
WIDE = {"seed": 1, "batch_size": 4, "steps": 12, "engines": 4, "slots": 4}
