"""Pause, weight updates, versions, checksums: what SGLang's control endpoints do, without HTTP.

Promises: weights change between two tokens, never inside a step; a refused update leaves the weights as they were; each
method returns SGLang's status code and JSON body for its endpoint.

A tensor's checksum is the first 16 hex digits of the SHA-256 of its raw bytes (row-major, in the engine's dtype), by its
Hugging Face name; ``per_gpu_checksum`` is the same of the lines ``name:checksum`` in the order of the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from miles_async.engines.checksum import checksums, overall_checksum
from miles_async.engines.embedded.checkpoint import ModelFilesError, read_config, read_tensors
from miles_async.engines.embedded.control_bodies import (
    CheckerBody,
    DestroyGroupBody,
    InitGroupBody,
    UpdateDiskBody,
    UpdateDistributedBody,
    VersionBody,
)
from miles_async.engines.embedded.groups import Buffers, TransferError, flattened_size, leave_group, receive
from miles_async.engines.embedded.joins import Joins
from miles_async.engines.embedded.model import Decoder, WeightError
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.engines.embedded.update_group import Answer, UpdateGroup
from miles_async.engines.embedded.worker import EngineThread
from miles_async.engines.weight_paths import inside
from miles_async.hooks.daemon_thread import in_thread

MAX_SIZE = 1 << 40  # of a dimension of a tensor

NOT_FLUSHED = (
    "Weights were updated, but the cache was not flushed because requests are still running or queued. "
    "Retract or finish them, then call /flush_cache."
)


class WeightControl:
    """The control plane of one engine. ``model_path`` and ``version`` are what /model_info reports."""

    def __init__(
        self,
        compute: EngineThread,
        model: Decoder,
        model_path: str,
        version: str,
        abort_all: Callable[[], None],
        weight_roots: Sequence[Path] = (),
    ) -> None:
        """``weight_roots``: where it may be told to load weights from, beside the directory of the model itself."""
        self.model_path = model_path
        self._roots = (*weight_roots, Path(model_path))
        self.version = version
        self._compute = compute
        self._model = model
        self._abort_all = abort_all
        self._groups: dict[str, UpdateGroup] = {}
        self._buffers = Buffers(model.storages)
        self._session = False
        self._joins = Joins()

    async def begin(self) -> Answer:
        if self._session:
            return _failed("a weight-update session is already open; call end_weight_update() first")
        self._session = True
        return _done("Success")

    async def end(self) -> Answer:
        if not self._session:
            return _failed("no weight-update session is open; call begin_weight_update() first")
        for group in list(self._groups.values()):
            await group.settle()
        self._session = False
        return _done("Success")

    async def init_group(self, body: InitGroupBody) -> Answer:
        if body.backend not in ("gloo", "nccl") or (body.backend == "nccl" and self._model.device.type != "cuda"):
            return _failed(
                f"Failed to initialize custom process group: backend {body.backend!r} on {self._model.device}."
            )
        if body.rank_offset >= body.world_size:
            why = f"rank {body.rank_offset} of {body.world_size}"
            return _failed(f"Failed to initialize custom process group: {why}.")
        if (old := self._groups.pop(body.group_name, None)) is not None:  # left behind by a sender that is gone
            await in_thread(lambda: leave_group(old.group))
        try:
            group = await self._joins.join(body)
        except TransferError as error:
            return _failed(f"Failed to initialize custom process group: {error}.")
        self._groups[body.group_name] = UpdateGroup(group)
        return _done("Succeeded to initialize custom process group.")

    async def destroy_group(self, body: DestroyGroupBody) -> Answer:
        group = self._groups.pop(body.group_name, None)
        if self._joins.end(body.group_name, "the sender gave it up"):
            return _done("Succeeded to destroy custom process group.")
        if group is None:
            return _failed("The group to be destroyed does not exist.")
        await in_thread(lambda: leave_group(group.group))
        return _done("Succeeded to destroy custom process group.")

    async def update_from_distributed(self, body: UpdateDistributedBody) -> Answer:
        if not self._session:
            return _failed(
                "update_weights_from_distributed must run between begin_weight_update() and end_weight_update()"
            )
        group = self._groups.get(body.group_name)
        if group is None:
            return _failed(
                f"Failed to receive weights: Group {body.group_name} not in {list(self._groups)}. "
                "Please call `init_weights_update_group` first."
            )
        flattened = body.load_format == "flattened_bucket"
        try:
            specs = _specs(body)
            size = flattened_size(specs) if flattened else 0
        except (ValueError, TransferError) as error:
            return _failed(f"Failed to receive weights: {error}")
        if body.abort_all_requests:
            self._abort_all()
        # gloo moves host memory only
        host = _backend_of(group.group) != "nccl"
        device = torch.device("cpu") if host else self._model.device
        failed = await group.settle(keep=1)
        # a model in host memory adopts what fits; before the step after that nobody reads what was there
        buffer = self._buffers.take(size) if host and flattened else None
        try:
            tensors = await in_thread(
                lambda: receive(group.group, body.group_name, specs, device, flattened=flattened, buffer=buffer)
            )
            for name, tensor in tensors:
                self._model.target(name, tensor.shape)
        except (TransferError, WeightError) as error:
            self._give_back(buffer)
            if isinstance(error, WeightError):
                return _failed(f"Failed to update parameter online: {error}.")
            return _failed(f"Failed to receive weights: {error}")
        if failed is not None:
            self._give_back(buffer)
            return failed
        load = self._apply(
            lambda: tensors,
            body.weight_version,
            flush=body.flush_cache,
            complete=False,
            message="Succeeded to update parameter online.",
            buffer=buffer,
        )
        # nobody can see when a part of an update gets into a model that stands still: the next one may come meanwhile
        if (
            host
            and flattened
            and body.weight_version is None
            and not body.flush_cache
            and self._compute.scheduler.paused
        ):
            group.begin(load)
            return _done("Succeeded to update parameter online.")
        answer = await load
        return await group.settle() or answer

    async def update_from_disk(self, body: UpdateDiskBody) -> Answer:
        if (directory := inside(body.model_path, self._roots)) is None:
            known = ", ".join(map(str, self._roots))
            status, answer = _failed(
                f"{body.model_path}: no weights there that this engine may load (only those in {known})."
            )
            return status, {**answer, "num_paused_requests": 0}
        if body.abort_all_requests:
            self._abort_all()
        try:
            config = read_config(directory)
            if (config.model_type, config.vocab_size) != (self._model.config.model_type, self._model.config.vocab_size):
                raise ModelFilesError(f"{body.model_path}: another architecture than the one served")
            tensors = await in_thread(lambda: list(read_tensors(directory)))
        except (ModelFilesError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            status, answer = _failed(f"Failed to get weights iterator: {error}.")
        else:
            status, answer = await self._apply(
                lambda: tensors,
                body.weight_version,
                flush=body.flush_cache,
                complete=True,
                message="Succeeded to update model weights.",
            )
        if answer["success"]:
            self.model_path = body.model_path
        return status, {**answer, "num_paused_requests": 0}

    async def _apply(
        self,
        tensors: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        version: str | None,
        *,
        flush: bool,
        complete: bool,
        message: str,
        buffer: torch.Tensor | None = None,
    ) -> Answer:
        """Load between two steps, then note the version and flush. A refused flush is a failure after the change.

        ``buffer``: of ours, that the tensors lie in; the model may keep it.
        """
        adopt = buffer is not None and self._model.device.type == "cpu"

        def load(scheduler: Scheduler) -> bool:
            self._model.load(tensors(), complete=complete, adopt=adopt)
            if version is not None:
                scheduler.set_version(version)
            return scheduler.flush() if flush else True

        try:
            flushed = await self._compute.exclusive(load)
        except WeightError as error:
            return _failed(f"Failed to update parameter online: {error}.")
        finally:
            self._give_back(buffer)
        if not flushed:  # as SGLang: the tokens' spans know the new version, /model_info does not
            return _failed(NOT_FLUSHED)
        if version is not None:
            self.version = version
            message += f" Weight version updated to {version}."
        return _done(message)

    def _give_back(self, buffer: torch.Tensor | None) -> None:
        if buffer is not None:
            self._buffers.give_back(buffer)

    async def set_version(self, body: VersionBody) -> Answer:
        if body.abort_all_requests:
            self._abort_all()
        await self._compute.call(lambda scheduler: scheduler.set_version(body.new_version))
        self.version = body.new_version
        message = f"Weight version updated to {body.new_version}"
        return 200, {"success": True, "message": message, "new_version": body.new_version}

    async def check(self, body: CheckerBody) -> Answer:
        if body.action != "checksum":
            return _failed(f"action {body.action!r} is not supported by the embedded engine, only 'checksum'")
        sums = await self._compute.call(lambda _: checksums(self._model.named_tensors()))
        total = overall_checksum(sums)
        parallelism = [{"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1}]
        rank = {"checksums": sums, "per_gpu_checksum": total, "parallelism_info": parallelism}
        return 200, {"success": True, "message": "Success", "ranks": [rank], "per_engine_checksum": total}

    def close(self) -> None:
        """Leave all groups, and those that are waited for, without waiting for that."""
        self._joins.end_all("the engine ends")
        self._groups.clear()


def _specs(body: UpdateDistributedBody) -> list[tuple[str, torch.dtype, list[int]]]:
    specs = []
    for name, dtype, shape in zip(body.names, body.dtypes, body.shapes, strict=True):
        kind = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(kind, torch.dtype) or any(not 0 <= size < MAX_SIZE for size in shape):
            raise ValueError(f"{name} cannot have dtype {dtype!r} and shape {shape}")
        specs.append((name, kind, shape))
    if not specs:
        raise ValueError("no tensor is named")
    return specs


def _backend_of(group: Any) -> str:
    return torch.distributed.get_backend(group)


def _done(message: str) -> Answer:
    return 200, {"success": True, "message": message}


def _failed(message: str) -> Answer:
    return 400, {"success": False, "message": message}
