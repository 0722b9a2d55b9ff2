"""Which weight transports there are: the table of ours, and the one that a configuration names."""

from __future__ import annotations

from pathlib import Path

from miles_async.config.effect import Rule, rules_of
from miles_async.config.schema import RunConfig
from miles_async.hooks.calls import refused
from miles_async.hooks.choice import Choice
from miles_async.weights.transports.base import Transport
from miles_async.weights.update import Key, Update

TRANSPORTS = Choice(
    "weights.transport",
    Transport,
    ("config", "run_dir"),
    {
        "collective": "miles_async.weights.transports.collective.Collective",
        "disk": "miles_async.weights.transports.disk.Disk",
        "disk_delta": "miles_async.weights.transports.disk_delta.DiskDelta",
    },
    needs=("carry or push",),
)


def make_transport(config: RunConfig, run_dir: Path) -> Transport:
    """The transport that the configuration names. Raises HookError, HookFailed."""
    name = config.weights.transport
    return TRANSPORTS.called(name, TRANSPORTS.load(name), config, run_dir)


async def prepared(transport: Transport, path: Path, key: Key) -> Update:
    """What ``transport`` makes of a snapshot. Raises SnapshotError, OSError; HookFailed: that is no update to its version."""
    found: object = await transport.prepare(path, key)
    if not isinstance(found, Update) or found.version != key[1]:
        raise refused(TRANSPORTS.hook, type(transport).prepare, found, f"a weights.update.Update to version {key[1]}")
    return found


def check(config: RunConfig) -> None:
    """Refuse a name that leads nowhere, and what the transport cannot work with. Raises ConfigError."""
    name = config.weights.transport
    TRANSPORTS.called(name, TRANSPORTS.load(name).check, config)


def effects() -> list[Rule]:
    """Which keys only one transport looks at."""
    return rules_of("weights.transport", {name: kind.KEYS for name, kind in TRANSPORTS.all_ours().items()})
