"""Asynchronous runs under a staleness policy, simulated by events."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from hypothesis import strategies as st

from bus.messages import ReadyGroup
from miles_async.staleness.policies import StalenessPolicy, StalenessState, too_old


@dataclass
class Result:
    """What a simulated run did. ``batches``: for each step the positions at which its groups were dealt."""

    batches: list[list[int]] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)
    dropped: int = 0
    refused: int = 0  # by a filter, as soon as they were generated
    surplus: int = 0
    masked: int = 0  # tokens
    max_open: int = 0
    duration: float = 0.0
    started_at: list[int] = field(default_factory=list)  # the learner's version when a group was dealt


def simulate(
    policy: StalenessPolicy,
    *,
    seed: int,
    batch_size: int,
    steps: int,
    engines: int,
    slots: int,
    update_interval: int,
    refuse: float = 0.0,
) -> Result:
    """A run by events: engines of their own pace with in-flight updates, delayed and skipped pushes, a slow learner, and a
    filter that refuses a share ``refuse`` of the groups.

    A group has two tokens: one of the version that its engine serves at its start, and one of that at its end.
    """
    rng = random.Random(seed)
    result = Result()
    events: list[tuple[float, int, str, tuple]] = []
    clock = count = version = newest_push = batches = 0
    serving = [0] * engines
    free = [(engine, slot) for engine in range(engines) for slot in range(slots)]
    order: list[str] = []  # open groups in dealt order
    waiting: list[str] = []
    ready: list[ReadyGroup] = []
    dealt = 0
    training, ticks = False, True
    floors: dict[str, int] = {}  # the version of the first token of what is generated

    def at(delay: float, kind: str, *data: object) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (clock + delay, count, kind, data))

    while len(result.batches) < steps or training or not ticks:
        state = StalenessState(
            batched_steps=len(result.batches),
            open_groups=len(order),
            batch_size=batch_size,
            serving_version=min(serving),
            total_steps=steps,
        )
        for _ in range(policy.admit(state)):
            order.append(str(dealt))
            waiting.append(str(dealt))
            result.started_at.append(version)
            dealt += 1
        result.max_open = max(result.max_open, len(order))
        rng.shuffle(free)
        while free and waiting:
            engine, slot = free.pop()
            floors[waiting[0]] = serving[engine]
            at(rng.lognormvariate(0, 1.2), "finished", waiting.pop(0), serving[engine], engine, slot)
        if not training:
            stale = dict(policy.evict(ready, version))
            if stale:
                assert set(stale.values()) == {"stale"}
                result.dropped += len(stale)
                order = [group_id for group_id in order if group_id not in stale]
                ready = [group for group in ready if group.group_id not in stale]
                continue  # a drop makes room, which the dealer has to see
            more = len(result.batches) < steps or not ticks
            chosen = policy.select(ready, order, version, batch_size) if more else None
            if chosen is not None:
                by_id = {group.group_id: group for group in ready}
                if ticks:
                    result.batches.append([])
                    batches = 0
                result.batches[-1] += [int(group_id) for group_id in chosen]
                batches += 1
                trained = [v for g in chosen for v, _ in by_id[g].versions]
                if policy.masks:
                    assert all(version - by_id[g].newest_version <= policy.max_lag for g in chosen), (
                        "nothing of it is left"
                    )
                    result.masked += sum(too_old(by_id[g], version, policy.max_lag) for g in chosen)
                    trained = [v for v in trained if version - v <= policy.max_lag]
                result.lags += [version - v for v in trained]
                surplus = [group_id for group_id in order if group_id not in chosen][
                    : policy.surplus
                ]  # as the ledger drops them
                result.surplus += len(surplus)
                gone = {*chosen, *surplus}
                order = [group_id for group_id in order if group_id not in gone]
                waiting = [group_id for group_id in waiting if group_id not in gone]
                ready = [group for group in ready if group.group_id not in gone]
                oldest = [min(serving), *(floors.get(group_id, min(serving)) for group_id in order)]
                ticks = len(result.batches) >= steps or policy.ticks(oldest, version, batches)
                training = True
                at(rng.uniform(0.1, 2), "trained")
                continue  # so does a batch
        assert events, f"deadlock at version {version}: {state}, {len(ready)} ready, serving {serving}"
        clock, _, kind, data = heapq.heappop(events)
        result.duration = clock
        if kind == "trained":
            training = False
            if not ticks:
                continue
            version += 1
            if version % update_interval == 0:
                newest_push = version
                for engine in range(engines):
                    at(rng.uniform(0, 1.5), "pushed", engine)
        elif kind == "pushed":
            serving[data[0]] = newest_push  # a push that was overtaken brings the newest
        else:
            group_id, oldest, engine, slot = data
            newest = serving[engine]
            free.append((engine, slot))
            if group_id not in order:
                continue  # dropped while it was generated
            if refuse and rng.random() < refuse:
                order.remove(group_id)
                result.refused += 1
                continue
            ready.append(
                ReadyGroup(
                    group_id=group_id,
                    payload_key="",
                    oldest_version=oldest,
                    newest_version=newest,
                    n_tokens=2,
                    published=clock,
                    versions=((oldest, 2),) if newest == oldest else ((oldest, 1), (newest, 1)),
                )
            )
    return result


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
