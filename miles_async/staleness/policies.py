"""Staleness policies: how many groups may start, which batch is next, what is too old. Pure: no I/O, no clock.

Promises: no token older than ``max_lag`` versions is ever selected, unless the policy says of itself that it has no hard bound
(``hard_bound``; a run has to allow that), nor one newer than the learner; a policy never waits for something that waits for the
policy (also at ``max_lag = 0``, which is the synchronous loop).

Terms. Version ``v``: the number of batches in the weights. Batch ``j`` (0-based) is trained by the learner at
version ``j`` and makes version ``j + 1``. ``B``: groups in a batch. ``L``: ``max_lag``. ``k``: batches recorded so far.
``o``: open groups, that is dealt, not dropped, and not yet in a batch. ``s``: the lowest version that a serving engine
confirmed. Engines only move to newer versions, and one that joins does so at ``s`` or later.

*The bound, derived for fifo.* Batches take groups in dealt order, so the next group dealt has position
``p = k*B + o`` among those not dropped and is trained in batch ``floor(p/B)``, at that learner version. Its tokens are
sampled by engines at ``s`` or later, so no token's lag exceeds ``floor(p/B) - s``. Admission starts it only while

    floor(p/B) - L <= s        that is        p < (s + L + 1) * B

hence lag <= L with nothing dropped. A drop (a dead worker's, say) moves later groups to earlier batches, which only
lowers their lag.

*No deadlock.* Whatever is open finishes. When batch ``k`` lacks groups, the learner has version ``k``; with weights
pushed at every ``u``-th version, ``s`` becomes at least ``k - u + 1`` by itself, and ``u <= L + 1`` (checked with the
configuration) makes ``p = k*B + o`` admissible for every ``o < B``: the batch gets its groups. With ``L = 0`` exactly
the B groups of batch ``k`` start, once version ``k`` is confirmed everywhere: the synchronous loop.

*Drop* admits by the same count but takes groups as they finish, so a slow group may be overtaken and grow too old; it
is then evicted, which frees its place.

*Token mask* (token_mask.py) is drop by the token: of a group that grew too old in part, what is within the bound is trained.
*Elastic* (elastic.py) holds the weights rather than let a group grow too old.

*Over-sampling* is fifo with ``E`` groups to spare: ``W = B + E`` are open for a batch (a filter drops some, or they are
slow). Batch ``k`` is the first ``B`` ready ones among the ``W`` that were dealt first, its window; with the batch, what is
left of the window is dropped as surplus, whatever its state. So a group that is dealt when ``o`` are open is trained or
dropped with batch ``k + floor(o/W)`` at the latest (drops before it only bring it forward), and admission while

    k + floor(o/W) - L <= s        that is        o < (s + L + 1 - k) * W

keeps its lag within ``L``. For that, a batch and its drops are one transition, and what is admitted at ``k`` is dealt before
batch ``k`` is recorded or not at all. It does not deadlock, as above: at least ``W`` groups may be open whenever batch ``k``
is waited for, each of them finishes, and one that is dropped is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bus.messages import UNSAMPLED, ReadyGroup

NO_BOUND = 1 << 30  # versions: no token is so far behind
STALE = "stale"
STALE_IN_FLIGHT = "stale_in_flight"  # the reason of a group that is ended while it is generated
UNPUBLISHED = "unpublished_version"


@dataclass(frozen=True, slots=True)
class StalenessState:
    """What admission knows. Counts are groups unless their name says otherwise."""

    batched_steps: int  # k: batches recorded, trained or not
    open_groups: int  # o: waiting + in flight + ready
    batch_size: int  # B
    serving_version: int  # s: lowest version confirmed by a serving engine
    total_steps: int  # batches of the whole run


class StalenessPolicy(Protocol):
    """What a policy decides. ``version`` is always the learner's at the moment it would train the batch in question.

    Admission changes with every batch, every drop and every confirmed version: whoever admits has to look again then.
    """

    @property
    def max_lag(self) -> int:
        """Versions that the oldest token of a trained group may be behind the learner."""
        ...

    @property
    def hard_bound(self) -> bool:
        """Whether nothing beyond ``max_lag`` is ever trained; else it is what the policy aims at."""
        ...

    @property
    def surplus(self) -> int:
        """How many open groups, those that were dealt first of the others, are dropped with each batch."""
        ...

    @property
    def masks(self) -> bool:
        """Whether a group may be selected of which some tokens are older than ``max_lag``: those are not trained on."""
        ...

    @property
    def requeues(self) -> bool:
        """Whether the prompts of what it evicts, or would, are dealt again, before new ones."""
        ...

    def admit(self, state: StalenessState) -> int:
        """How many more groups may start now."""
        ...

    @property
    def holds(self) -> bool:
        """Whether :meth:`ticks` is to be asked, with each batch that is chosen."""
        ...

    def ticks(self, open_versions: Iterable[int], version: int, batches: int) -> bool:
        """Whether the weights, which are those of ``version``, change with the batch that was just chosen, the last of so many
        ``batches``; else they are held, and the next one is trained at the same version. ``open_versions``: of what is open and
        not chosen, what the oldest token's version is at least."""
        ...

    def evict(self, ready: Sequence[ReadyGroup], version: int) -> list[tuple[str, str]]:
        """``(group id, reason)`` of the ready groups that may no longer be trained; ask before ``select``."""
        ...

    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        """The ids of the next batch in training order, or None to wait.

        ``ready``: in the order of publication. ``open_order``: ids of all open groups (the ready ones too), in dealt
        order.
        """
        ...


def lag(group: ReadyGroup, version: int) -> int:
    """Versions between the learner at ``version`` and the oldest token of ``group``."""
    return version - group.oldest_version


def is_usable(group: ReadyGroup, version: int, max_lag: int) -> bool:
    """Whether the learner at ``version`` may train it: no token is too old, or of a version that this learner has not made."""
    return lag(group, version) <= max_lag and newest(group) <= version


def newest(group: ReadyGroup) -> int:
    """The newest version that sampled a token of ``group``; -1: none did (SFT)."""
    found = -1
    for sampled, _ in group.versions:  # of each ready group, whenever one is published: no generator for these few
        if found < sampled != UNSAMPLED:
            found = sampled
    return found


def bound_of(policy: StalenessPolicy) -> int:
    """Versions that a token may be behind the learner that trains it under ``policy``."""
    return policy.max_lag if policy.hard_bound else NO_BOUND


def has_trainable(group: ReadyGroup, version: int, max_lag: int) -> bool:
    """Whether some token of ``group`` is within the bound at ``version``, and none is of a version that is still to come."""
    return (last := newest(group)) == -1 or version - max_lag <= last <= version


def too_old(group: ReadyGroup, version: int, max_lag: int) -> int:
    """Response tokens of ``group`` that are more than ``max_lag`` versions behind ``version``."""
    return sum(count for sampled, count in group.versions if version - sampled > max_lag)


def is_outdated(policy: StalenessPolicy, oldest: int, version: int, group_id: str = "") -> bool:
    """Whether a group that is still generated and has a token of ``oldest`` can be trained no more by a learner that has
    reached ``version``: whether ``policy``, one of ours, evicts it with that token and one of the learner's own version.

    The learner's version grows and that of the token does not, so what is outdated stays so, whenever it would be ready.
    """
    if oldest > version:  # nobody sampled it
        return False
    versions = ((oldest, 1), (version, 1)) if oldest < version else ((version, 2),)
    group = ReadyGroup(
        group_id=group_id,
        payload_key="",
        oldest_version=oldest,
        newest_version=version,
        n_tokens=2,
        published=0.0,
        versions=versions,
    )
    return bool(policy.evict([group], version))


def admissible(state: StalenessState, max_lag: int, surplus: int = 0) -> int:
    """Groups that may start so that each is within ``max_lag`` when consumed in dealt order (derived above).

    ``surplus``: groups that are open for a batch beyond those that it trains.
    """
    window = state.batch_size + surplus
    limit = min(state.serving_version + max_lag + 1, state.total_steps) * window
    return max(0, limit - (state.batched_steps * window + state.open_groups))


def has_room(state: StalenessState, capacity: int) -> int:
    """Groups that may start where no version is a gate: while fewer than ``capacity`` are open, and the run needs them."""
    needed = (state.total_steps - state.batched_steps) * state.batch_size
    return max(0, min(capacity, needed) - state.open_groups)


def unusable(ready: Sequence[ReadyGroup], version: int, max_lag: int) -> list[tuple[str, str]]:
    """The ready groups that the learner at ``version`` may not train, with the reason."""
    return [
        (group.group_id, STALE if lag(group, version) > max_lag else UNPUBLISHED)
        for group in ready
        if not is_usable(group, version, max_lag)
    ]


def untrainable(ready: Sequence[ReadyGroup], version: int, max_lag: int) -> list[tuple[str, str]]:
    """The ready groups of which the learner at ``version`` may train no token, with the reason."""
    return [
        (group.group_id, UNPUBLISHED if newest(group) > version else STALE)
        for group in ready
        if not has_trainable(group, version, max_lag)
    ]


@dataclass(frozen=True, slots=True)
class Bounded:
    """What the policies with a bound on each token share: admission by count, eviction by version."""

    max_lag: int
    surplus: int = 0
    requeues: bool = False

    @property
    def hard_bound(self) -> bool:
        return True

    @property
    def masks(self) -> bool:
        return False

    @property
    def holds(self) -> bool:
        return False

    def ticks(self, open_versions: Iterable[int], version: int, batches: int) -> bool:
        return True

    def admit(self, state: StalenessState) -> int:
        return admissible(state, self.max_lag, self.surplus)

    def evict(self, ready: Sequence[ReadyGroup], version: int) -> list[tuple[str, str]]:
        return unusable(ready, version, self.max_lag)
