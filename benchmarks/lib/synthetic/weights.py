"""The control plane of a synthetic engine: SGLang's answers, and a version in the place of weights.

Promises: the order of calls is checked as an engine does (sessions do not nest, a broadcast needs a session and a group, a
running request refuses a flush); nothing is received; every version that is served is kept, with the time since when.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

from benchmarks.lib.synthetic.batch import Batch
from benchmarks.lib.synthetic.compute import LoopCompute
from miles_async.engines.embedded import control, control_bodies
from miles_async.engines.embedded.control import Answer


class VersionControl:
    """What ``miles_async.engines.embedded.control.WeightControl`` is to a real engine.

    served: (loop time, version), added to. update_s: how long an update takes. ``lie``: reported in the place of the version.
    """

    def __init__(
        self,
        compute: LoopCompute,
        model_path: str,
        version: str,
        abort_all: Callable[[], None],
        served: list[tuple[float, str]],
        update_s: float,
    ) -> None:
        self.model_path, self.true_version, self.update_s = model_path, version, update_s
        self.lie: str | None = None
        self._known = version  # what /model_info says: behind the tokens' version after a refused flush
        self._compute, self._abort_all, self._served = compute, abort_all, served
        self._groups: set[str] = set()
        self._session = False
        self._note(version)

    @property
    def version(self) -> str:
        return self._known if self.lie is None else self.lie

    async def tell(self, lie: str | None) -> None:
        """Report ``lie`` from now on, whatever is served; None: the truth."""
        self.lie = lie
        await self._compute.call(self._label)

    async def begin(self) -> Answer:
        if self._session:
            return _failed("a weight-update session is already open; call end_weight_update() first")
        self._session = True
        return _done("Success")

    async def end(self) -> Answer:
        if not self._session:
            return _failed("no weight-update session is open; call begin_weight_update() first")
        self._session = False
        return _done("Success")

    async def init_group(self, body: control_bodies.InitGroupBody) -> Answer:
        self._groups.add(body.group_name)
        return _done("Succeeded to initialize custom process group.")

    async def destroy_group(self, body: control_bodies.DestroyGroupBody) -> Answer:
        if body.group_name not in self._groups:
            return _failed("The group to be destroyed does not exist.")
        self._groups.discard(body.group_name)
        return _done("Succeeded to destroy custom process group.")

    async def update_from_distributed(self, body: control_bodies.UpdateDistributedBody) -> Answer:
        if not self._session:
            return _failed(
                "update_weights_from_distributed must run between begin_weight_update() and end_weight_update()"
            )
        if body.group_name not in self._groups:
            return _failed(f"Failed to receive weights: Group {body.group_name} not in {sorted(self._groups)}.")
        return await self._update(body)

    async def update_from_disk(self, body: control_bodies.UpdateDiskBody) -> Answer:
        status, answer = await self._update(body)
        if answer["success"]:
            self.model_path = body.model_path
        return status, {**answer, "num_paused_requests": 0}

    async def set_version(self, body: control_bodies.VersionBody) -> Answer:
        if body.abort_all_requests:
            self._abort_all()
        await self._compute.call(lambda batch: self._take(batch, body.new_version))
        self._known = body.new_version
        message = f"Weight version updated to {body.new_version}"
        return 200, {"success": True, "message": message, "new_version": body.new_version}

    async def check(self, body: control_bodies.CheckerBody) -> Answer:
        if body.action != "checksum":
            return _failed(f"action {body.action!r} is not supported by the synthetic engine, only 'checksum'")
        total = f"{zlib.crc32(self.true_version.encode()):016x}"
        rank = {"checksums": {"version": total}, "per_gpu_checksum": total, "parallelism_info": []}
        return 200, {"success": True, "message": "Success", "ranks": [rank], "per_engine_checksum": total}

    def close(self) -> None:
        """Nothing is held."""

    async def _update(self, body: control_bodies.UpdateDistributedBody | control_bodies.UpdateDiskBody) -> Answer:
        if body.abort_all_requests:
            self._abort_all()
        await asyncio.sleep(self.update_s)

        def load(batch: Batch) -> bool:
            if body.weight_version is not None:
                self._take(batch, body.weight_version)
            return batch.flush() if body.flush_cache else True

        if not await self._compute.exclusive(load):
            return _failed(control.NOT_FLUSHED)
        if body.weight_version is not None:
            self._known = body.weight_version
        return _done("Succeeded to update model weights.")

    def _take(self, batch: Batch, version: str) -> None:
        self.true_version = version
        self._label(batch)
        self._note(version)

    def _label(self, batch: Batch) -> None:
        batch.set_version(self.true_version if self.lie is None else self.lie, self.true_version)

    def _note(self, version: str) -> None:
        self._served.append((asyncio.get_running_loop().time(), version))


def _done(message: str) -> Answer:
    return 200, {"success": True, "message": message}


def _failed(message: str) -> Answer:
    return 400, {"success": False, "message": message}
