"""The launch's connection to a Ray cluster: one that is there, or, only where that is asked for, one that ends with the run.

Promises: no second cluster is ever started by accident; what cannot be reached is one line within seconds; a Ray that was
started here is gone after :meth:`Cluster.close`, and one that was there goes on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private.state import available_resources_per_node, state  # nothing public says this without the dashboard

from actors.runtime.placement.base import NoPlaceError
from actors.runtime.placement.fork_server import blocked
from actors.runtime.placement.on_ray import layout, sums
from miles_async.config.schema import ConfigError, Placement
from miles_async.hooks.environment import environment
from miles_async.runs.places import check_address

REACH_S = 5.0
ADDRESS, USAGE = "RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED"


class Cluster:
    """Of one launch. Nothing happens before :meth:`attach`."""

    def __init__(self, section: Placement, namespace: str) -> None:
        self.section, self.namespace = section, namespace
        self.address, self.here = "", ""  # of its head; the launch's own machine, by Ray's name of it
        self._is_ours = False  # the connection: of a program that has one already, that stays

    def attach(self, bundles: Sequence[layout.Bundle]) -> None:
        """Connect. A Ray that is started here has as many CPUs as ``bundles`` ask for: on one machine nobody counts them.

        Raises ConfigError, NoPlaceError.
        """
        if not ray.is_initialized():
            self._connect(bundles)
            self._is_ours = True
        context = ray.get_runtime_context()
        self.address, self.here = context.gcs_address, context.get_node_id()

    def _connect(self, bundles: Sequence[layout.Bundle]) -> None:
        address = self._address()
        starts, env = dict[str, Any](), dict[str, str]()
        if self.section.start_ray:
            env = {USAGE: os.environ.get(USAGE, "0")}
            wanted = math.ceil(layout.total(bundle.resources for bundle in bundles).get("CPU", 0))
            starts = {"num_cpus": max(os.cpu_count() or 1, wanted), "include_dashboard": False}
        elif address != "auto":
            _reach(address)
        quietly = {"namespace": self.namespace, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            # what is started inherits that: a signal to the group is for the launch
            with blocked() if self.section.start_ray else contextlib.nullcontext(), environment(env):
                ray.init(address, **quietly, **starts)
        except Exception as error:  # a bare one where its own node was not up within its 30 s
            raise NoPlaceError(f"Ray at {address}: {_why(error)}") from None
        _be_quiet()

    def _address(self) -> str:
        """Raises ConfigError: there is none, or there are two."""
        given, said = self.section.address, os.environ.get(ADDRESS)
        if self.section.start_ray:
            if said:
                raise ConfigError(f"placement.start_ray = true beside {ADDRESS}={said}: one or the other")
            return "local"
        if address := given or said:
            check_address("placement.address" if given else ADDRESS, address)
            return address
        raise ConfigError(
            f'placement.kind = "ray": which cluster? Name its head in placement.address or {ADDRESS} ("auto": the one '
            "that runs on this machine), or let the launch start one with placement.start_ray = true"
        )

    def machines(self) -> list[sums.Machine]:
        """Those that live."""
        return [sums.Machine(node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]]

    def hosts(self) -> dict[str, str]:
        """Of each machine that lives, by Ray's name of it, the address."""
        return {str(node["NodeID"]): str(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]}

    def free(self) -> dict[str, float]:
        """What nobody has, in the whole cluster."""
        return {name: float(amount) for name, amount in ray.available_resources().items()}

    def room(self) -> tuple[list[dict[str, float]], frozenset[str]]:
        """What nobody has on each machine that is not taken back, and Ray's names of those that are.

        Ray was told to drain them: by a notice of a spot machine's end, say. Raises RayError.
        """
        taken_back = frozenset(map(str, state.get_draining_nodes()))
        return [free for node, free in available_resources_per_node().items() if node not in taken_back], taken_back

    def gpus(self) -> float:
        """How many it has."""
        return layout.total(machine.total for machine in self.machines()).get("GPU", 0.0)

    def check_free(self, who: str, bill: Mapping[str, float]) -> None:
        """Refuse one more actor for which there is no room now. Raises NoPlaceError."""
        free = self.free() if bill else {}
        if not sums.fits(bill, free):
            raise NoPlaceError(f"no place for {who} in Ray: it asks for {sums.shown(bill)}; free: {sums.shown(free)}")

    def close(self) -> None:
        """Safe to call twice."""
        if self._is_ours and ray.is_initialized():
            ray.shutdown()


def _why(error: BaseException) -> str:
    """In a line. It listens; Ray's own error does not say whether it was for a token that it answered nothing."""
    why = " ".join(str(error).split())[:300]
    return (
        f"{why} (does it ask for a token? RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)" if "Failed to connect" in why else why
    )


def _reach(address: str) -> None:
    """Ray itself would try for a minute. Raises NoPlaceError."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise NoPlaceError(f"no Ray answers at {address}: {error}") from None


def _be_quiet() -> None:
    """What Ray has to say of dead actors the placement says itself; on standard output, where Ray has no setting for it, it
    would be in the way of a JSON."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = _say_nothing


def _say_nothing(*_: object, **__: object) -> None:
    pass
