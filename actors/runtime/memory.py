"""The room in memory that a launch's snapshots take: claimed and swept at its begin, given back at its end.

Promises: while the launch lives nobody removes its snapshots; at its end nothing of them is left but what a resumed run
needs, which is said; what killed launches left is gone before this one looks for room. Where actors are on several machines
each has its own share of the memory there (``many_machines.py``): the launch sees to what they share on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from miles_async.config.schema import RunConfig
from miles_async.weights.clean import size
from miles_async.weights.leftovers import Removed, sweep, tidy
from miles_async.weights.place import Place, claim, shared_root


class SnapshotRoom:
    """Of the launch in ``run_dir``."""

    def __init__(self, config: RunConfig, run_dir: Path, *, one_machine: bool = True) -> None:
        self._run_dir, self._one_machine = run_dir, one_machine
        self._shared = None if one_machine else shared_root(config, run_dir)
        self._on_disk = config.weights.snapshot_dir is None  # a directory that was asked for is left as it is
        self._place: Place | None = None

    async def begin(self, *, keep_pins: bool, tell: Callable[..., None]) -> None:
        """``keep_pins``: what waits for an evaluation is needed. ``tell`` takes an event. Raises TimeoutError."""
        if self._one_machine:
            self._place = await asyncio.to_thread(claim, self._run_dir)
        own = await asyncio.to_thread(self._tidy, keep_pins, stays=True)
        for removed in [*own, *await asyncio.to_thread(sweep)]:
            if removed.removed:
                tell("swept", run=removed.run_dir, place=removed.place, bytes=removed.bytes)

    def end(self, *, keep_pins: bool) -> str:
        """No process of the run is left. Returns what stays, and why, for the user; empty: nothing does."""
        found = self._tidy(keep_pins)
        if self._place is not None:
            self._place.let_go()
        return "; ".join(
            f"{', '.join(left.kept)} ({size(left.kept_bytes)}) stay in {left.place} for evaluations that the run makes when "
            f"it goes on; `miles-async clean {self._run_dir}` removes them"
            for left in found
            if left.kept
        )

    def _tidy(self, keep_pins: bool, *, stays: bool = False) -> list[Removed]:
        return tidy(
            self._run_dir,
            on_disk=self._on_disk,
            keep_pins=keep_pins,
            stays=stays,
            memory=self._one_machine,
            shared=self._shared,
        )
