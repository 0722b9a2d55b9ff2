"""One version of the weights that is ready to send, its receivers, and what became of it. Importing this costs no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from miles_async.engines.client import EngineClient

if TYPE_CHECKING:
    from miles_async.weights.buckets import Bucket

Key = tuple[int, int]  # (incarnation, version) of a snapshot


@dataclass(frozen=True)
class Receiver:
    """An engine that weights are sent to, as a member of groups."""

    name: str
    client: EngineClient
    ranks: int = 1  # its tensor-parallel size


@dataclass(frozen=True)
class Update:
    """A version, ready to send."""

    version: int
    path: Path
    buckets: tuple[Bucket, ...]
    copies: Mapping[str, Path] = field(
        default_factory=dict
    )  # engine to a directory of its own machine, where it has one
    number: int | None = None  # among the versions that the transport knows the changes between
    follows: bool = False  # each engine of the wave has confirmed an earlier version, and was not down since

    @property
    def n_bytes(self) -> int:
        return sum(bucket.n_bytes for bucket in self.buckets)


@dataclass
class Copies:
    """Where the local copies of a version lie, by engine; which has none, and why; which had to ask for all of it, and why."""

    paths: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PushReport:
    """What one push did. Seconds are wall clock; ``failed`` maps an engine to why it does not serve the version."""

    version: int
    n_bytes: int  # sent to each engine
    seconds: float
    paused_s: dict[str, float]  # from asking to pause until it was told to go on
    served: tuple[str, ...]
    failed: dict[str, str] = field(default_factory=dict)


async def prepare(path: Path | str, version: int, bucket_mb: int) -> Update:
    """Map a snapshot and cut it into buckets. Raises SnapshotError."""
    from miles_async.weights.buckets import make_buckets  # imports torch
    from miles_async.weights.snapshot import load_snapshot

    def load() -> Update:
        buckets = make_buckets(load_snapshot(path), bucket_mb * 1024 * 1024)
        for bucket in buckets:
            bucket.flat[::4096].sum()  # map the pages now, not while the engines are paused
        return Update(version, Path(path), tuple(buckets))

    return await asyncio.to_thread(load)
