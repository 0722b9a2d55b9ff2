"""The placement groups of a run: asked for together, waited for with a deadline, and removed at its end.

Promises: a wait is said with what it is for, and ends in a line with names and sums; no group outlives
:meth:`Groups.close`, nor, by Ray's own means, the launch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from actors.runtime.placement.base import NoPlaceError
from actors.runtime.placement.on_ray import layout, sums
from actors.runtime.placement.on_ray.cluster import Cluster
from miles_async.config.schema import RunConfig

SAY_AFTER_S = 2.0
LOOK_S = 0.1
REMOVED_S = 5.0


class Groups:
    """Of one launch."""

    def __init__(self, config: RunConfig, namespace: str, cluster: Cluster) -> None:
        self.bundles = layout.bundles(config)
        self._wanted = {group.name: group for group in layout.groups(config)}
        self._namespace, self._cluster = namespace, cluster
        self._asked: dict[str, PlacementGroup] = {}

    def ask(self) -> None:
        """Have Ray look for their places."""
        for group in self._wanted.values():
            bundles = [dict(bundle.resources) for bundle in group.bundles]
            self._asked[group.name] = placement_group(bundles, group.strategy, f"{self._namespace}/{group.name}")

    def of(self, name: str) -> PlacementGroup:
        """One that was asked for."""
        return self._asked[name]

    async def wait(self, timeout_s: float, tell: Callable[[str], None]) -> None:
        """Until all of them have their places. Raises NoPlaceError: not within ``timeout_s``."""
        began, said = time.monotonic(), False
        while waiting := [name for name, group in self._asked.items() if self._state(group) != "CREATED"]:
            waited = time.monotonic() - began
            if waited >= timeout_s:
                raise NoPlaceError(
                    f"no place in Ray within placement.ready_timeout_s = {timeout_s:g}: {self._why(waiting)}"
                )
            if waited >= SAY_AFTER_S and not said:
                said = True
                tell(f"waiting for a place in Ray: {self._why(waiting)}")
            await asyncio.sleep(LOOK_S)

    def _state(self, group: PlacementGroup) -> str:
        return str(placement_group_table(group)["state"])

    def _why(self, names: list[str]) -> str:
        wanted = [
            f"{name} ({sums.shown(layout.total(bundle.resources for bundle in self._wanted[name].bundles))})"
            for name in names
        ]
        return f"{', '.join(wanted)}; free in the cluster: {sums.shown(self._cluster.free())}"

    def close(self) -> None:
        """They are removed, and Ray has said so, or had its time. Safe to call twice."""
        for group in self._asked.values():
            with contextlib.suppress(RayError):
                remove_placement_group(group)
        until = time.monotonic() + REMOVED_S
        with contextlib.suppress(RayError):
            while any(self._state(group) != "REMOVED" for group in self._asked.values()) and time.monotonic() < until:
                time.sleep(0.02)
        self._asked.clear()
