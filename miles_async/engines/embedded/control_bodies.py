"""What the pages that control an engine take, as types: SGLang's fields, and of them those that this engine knows."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from miles_async.engines.embedded.scheduler import PauseMode

MAX_RANKS = 1 << 16


class NoBody(msgspec.Struct):
    """The body of an endpoint that takes nothing: a JSON object, or nothing at all."""


class PauseBody(msgspec.Struct):
    mode: PauseMode = "abort"


class AbortBody(msgspec.Struct):
    rid: str | None = ""
    abort_all: bool = False


class InitGroupBody(msgspec.Struct):
    master_address: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,255}\Z")]
    master_port: Annotated[int, Meta(ge=1, le=65535)]
    rank_offset: Annotated[int, Meta(ge=1, le=MAX_RANKS)]  # the sender is rank 0
    world_size: Annotated[int, Meta(ge=2, le=MAX_RANKS)]
    group_name: str = "weight_update_group"
    backend: str = "nccl"


class DestroyGroupBody(msgspec.Struct):
    group_name: str = "weight_update_group"


class UpdateDistributedBody(msgspec.Struct):
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    group_name: str = "weight_update_group"
    flush_cache: bool = True
    abort_all_requests: bool = False
    weight_version: str | None = None
    load_format: str | None = None


class UpdateDiskBody(msgspec.Struct):
    model_path: str
    load_format: str | None = None
    flush_cache: bool = True
    abort_all_requests: bool = False
    weight_version: str | None = None


class VersionBody(msgspec.Struct):
    new_version: str
    abort_all_requests: bool = True


class CheckerBody(msgspec.Struct):
    action: str = "checksum"
