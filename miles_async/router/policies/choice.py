"""The policies by the name that ``router.policy`` gives them."""

from __future__ import annotations

from collections.abc import Callable

from miles_async.router.policies.consistent_hash import ConsistentHash
from miles_async.router.policies.least_inflight import LeastInflight
from miles_async.router.policies.policy import RoutingPolicy
from miles_async.router.policies.power_of_two import PowerOfTwo

POLICIES: dict[str, Callable[[int], RoutingPolicy]] = {
    "least_inflight": lambda seed: LeastInflight(),
    "power_of_two": PowerOfTwo,
    "consistent_hash": lambda seed: ConsistentHash(),
}


def make_policy(name: str, seed: int = 0) -> RoutingPolicy:
    """A policy without engines. ``seed``: of one that draws. Raises KeyError: no such policy."""
    return POLICIES[name](seed)
