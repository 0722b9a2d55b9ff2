"""A staleness policy of the user's, held to what a policy may decide.

Promises: what it says beyond its rights (a count that is none, a group that is not ready, a batch of another size, a token
older than ``staleness.max_lag``, a reason that cannot be counted by) is a HookFailed that names ``staleness.policy``, before
the ledger hears of it. Pure, as policies are.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bus.messages import ReadyGroup
from miles_async.config.schema import Rollout, Staleness
from miles_async.hooks.calls import called, refused, shown
from miles_async.hooks.hook import Hook
from miles_async.staleness.policies import (
    NO_BOUND,
    StalenessPolicy,
    StalenessState,
    has_trainable,
    is_usable,
    lag,
)

METHODS = ("admit", "evict", "select")
REASON = re.compile(r"[A-Za-z0-9_.-]{1,60}\Z")


class CheckedPolicy:
    """The policy that ``make``, the function of ``hook``, gives. Raises HookFailed here and at each method."""

    def __init__(self, hook: Hook, make: Callable[..., Any], staleness: Staleness, rollout: Rollout) -> None:
        self._hook, self._bound = hook, staleness.max_lag
        self._policy: StalenessPolicy = called(hook, make, staleness, rollout)
        missing = [name for name in METHODS if not callable(getattr(self._policy, name, None))]
        if missing:
            raise refused(hook, make, self._policy, f"a policy: it has no {' and no '.join(missing)}")
        lag_of_its: Any = getattr(self._policy, "max_lag", None)
        if not _is_count(lag_of_its) or not 0 <= int(lag_of_its) <= self._bound:
            wanted = f"a policy whose max_lag is a number of versions, at most staleness.max_lag = {self._bound}"
            raise refused(hook, make, lag_of_its, wanted)
        self._max_lag, self._surplus = int(lag_of_its), rollout.surplus
        surplus: Any = getattr(self._policy, "surplus", 0)
        if surplus != rollout.surplus:
            wanted = (
                f"a policy whose surplus is {rollout.surplus}, as rollout.over_sampling_batch_size = "
                f"{rollout.over_sampling_batch_size or rollout.rollout_batch_size} asks"
            )
            raise refused(hook, make, surplus, wanted)
        if self.masks and not self.hard_bound:
            raise refused(hook, make, self._policy, "a policy: one that masks has a hard bound")

    @property
    def max_lag(self) -> int:
        return self._max_lag

    @property
    def hard_bound(self) -> bool:
        return bool(getattr(self._policy, "hard_bound", True))

    @property
    def requeues(self) -> bool:
        return bool(getattr(self._policy, "requeues", False))

    @property
    def surplus(self) -> int:
        return self._surplus

    @property
    def holds(self) -> bool:
        return bool(getattr(self._policy, "holds", False))

    def ticks(self, open_versions: Iterable[int], version: int, batches: int) -> bool:
        found = called(self._hook, self._policy.ticks, list(open_versions), version, batches)
        if not isinstance(found, bool):
            raise refused(self._hook, self._policy.ticks, found, "whether the weights change, true or false")
        return found

    @property
    def masks(self) -> bool:
        return bool(getattr(self._policy, "masks", False))

    def admit(self, state: StalenessState) -> int:
        found = called(self._hook, self._policy.admit, state)
        if not _is_count(found):
            raise refused(self._hook, self._policy.admit, found, "how many groups may start, a whole number")
        return operator.index(found)

    def evict(self, ready: Sequence[ReadyGroup], version: int) -> list[tuple[str, str]]:
        found = called(self._hook, self._policy.evict, list(ready), version)
        ids = {group.group_id for group in ready}
        if not isinstance(found, list | tuple) or not all(_is_eviction(item, ids) for item in found):
            wanted = "a list of (id of a ready group, reason of at most 60 letters, digits, _, . and -)"
            raise refused(self._hook, self._policy.evict, found, wanted)
        return list({group_id: (group_id, reason) for group_id, reason in found}.values())

    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        found = called(self._hook, self._policy.select, list(ready), list(open_order), version, batch_size)
        if found is None:
            return None
        groups = {group.group_id: group for group in ready}
        if not isinstance(found, list | tuple) or not all(isinstance(one, str) and one in groups for one in found):
            raise refused(self._hook, self._policy.select, found, "ids of ready groups, or None")
        if len(found) != batch_size or len(set(found)) != batch_size:
            wanted = f"{batch_size} different groups (rollout.rollout_batch_size), or None"
            raise refused(self._hook, self._policy.select, found, wanted)
        may_train = has_trainable if self.masks else is_usable
        bound = self._bound if self.hard_bound else NO_BOUND
        if old := [one for one in found if not may_train(groups[one], version, bound)]:
            wanted = (
                f"groups that version {version} may train: {shown(old[0])} is {lag(groups[old[0]], version)} versions "
                f"behind, staleness.max_lag is {self._bound}"
            )
            raise refused(self._hook, self._policy.select, found, wanted)
        return tuple(found)


def _is_count(found: Any) -> bool:
    return not isinstance(found, bool) and hasattr(found, "__index__") and not hasattr(found, "__len__")


def _is_eviction(item: Any, ids: set[str]) -> bool:
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(isinstance(part, str) for part in item)
        and item[0] in ids
        and REASON.match(item[1]) is not None
    )
