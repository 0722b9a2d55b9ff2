"""Every extension point of a run, in one list: the key that names its function, its signature, its built-ins.

``docs/customization.md`` is the same list for people, and a test holds the two together. A hook that belongs to a part of
the system is defined beside that part and only listed here.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from miles_async.config import RunConfig
from miles_async.hooks import Hook
from miles_async.rewards.registry import REWARD

HOOKS: tuple[Hook, ...] = (REWARD,)


def resolve_paths(config: RunConfig, base: Path) -> RunConfig:
    """``config`` with the files of all hooks made absolute: relative ones lie beside the TOML file."""
    for hook in HOOKS:
        section_name, _, key = hook.key.partition(".")
        section = getattr(config, section_name)
        value = getattr(section, key)
        if value is None:
            continue
        single = isinstance(value, str)
        resolved = [hook.resolve_path(item, base) for item in ([value] if single else value)]
        section = msgspec.structs.replace(section, **{key: resolved[0] if single else resolved})
        config = msgspec.structs.replace(config, **{section_name: section})
    return config


def check(config: RunConfig) -> None:
    """Load every function that ``config`` names. Raises HookError, one line."""
    for hook in HOOKS:
        for value in hook.values(config):
            if value not in hook.built_in or value in hook.needs:
                hook.load(value)
