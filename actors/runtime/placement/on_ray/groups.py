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
        self._orders: dict[str, list[int]] = {}  # of bundles, where that is not the one of their numbers
        self._homes: dict[str, dict[int, str]] = {}  # on which machine a bundle was last

    def ask(self) -> None:
        """Have Ray look for their places."""
        for group in self._wanted.values():
            bundles = [dict(bundle.resources) for bundle in group.bundles]
            self._asked[group.name] = placement_group(bundles, group.strategy, f"{self._namespace}/{group.name}")

    def of(self, name: str) -> PlacementGroup:
        """One that was asked for."""
        return self._asked[name]

    def bundle(self, name: str, place: int) -> int:
        """Which bundle is the group's first (0), second, ... one."""
        return self._orders[name][place] if name in self._orders else place

    def rearrange(self, name: str) -> None:
        """Those that are on a machine come first, and of them those that did before. Raises RayError."""
        there, _ = self.there(name)
        order = self._orders.get(name, list(range(len(self._wanted[name].bundles))))
        self._orders[name] = sorted(order, key=lambda bundle: bundle not in there)

    def there(self, name: str) -> tuple[list[int], tuple[str, ...]]:
        """Bundles that are on a machine that lives, and the machines that the others were on: of a group one of whose machines
        was lost Ray keeps the rest, and looks for places for these. Raises RayError."""
        nodes: dict[int, str] = placement_group_table(self._asked[name])["bundles_to_node_id"]
        living = self._cluster.hosts()
        homes = self._homes.setdefault(name, {})
        homes |= {bundle: living[node] for bundle, node in nodes.items() if node in living}
        lost = {homes[bundle] for bundle, node in nodes.items() if node not in living and bundle in homes}
        return sorted(bundle for bundle, node in nodes.items() if node in living), tuple(sorted(lost))

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
