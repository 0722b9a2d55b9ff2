"""Every extension point of a run, in one list: the key that names its function, its signature, its built-ins.

``docs/customization.md`` is the same list for people, and a test holds the two together. A hook that belongs to a part of
the system is defined beside that part and only listed here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config.schema import RunConfig
from miles_async.data.source import DATA_SOURCE
from miles_async.engines.kinds.table import KINDS
from miles_async.evaluation.hooks import HOOKS as EVALUATION
from miles_async.evaluation.settings import dataset_configs
from miles_async.filters.registry import HOOKS as FILTERS
from miles_async.hooks.choice import Choice
from miles_async.hooks.hook import Hook
from miles_async.rewards.registry import GROUP_REWARD, REWARD
from miles_async.rewards.registry import HOOKS as REWARDS
from miles_async.rl.hooks import HOOKS as ALGORITHM
from miles_async.rollout.registry import HOOKS as ROLLOUTS
from miles_async.staleness.choice import POLICY
from miles_async.staleness.choice import check as check_policy
from miles_async.train.backend import BACKENDS
from miles_async.train.hooks import HOOKS as LEARNER
from miles_async.weights.export import EXPORT
from miles_async.weights.transports.table import TRANSPORTS

HOOKS: tuple[Hook, ...] = (
    *ALGORITHM,
    *LEARNER,
    DATA_SOURCE,
    *REWARDS,
    *ROLLOUTS,
    *FILTERS,
    POLICY,
    EXPORT,
    *EVALUATION,
)
# keys that name a class; each has a table of ours
CHOICES: tuple[Choice[Any], ...] = (KINDS, TRANSPORTS, BACKENDS)


def resolve_paths(config: RunConfig, base: Path) -> RunConfig:
    """``config`` with the files of all hooks made absolute: relative ones lie beside the TOML file."""
    for hook in (*HOOKS, *(choice.hook for choice in CHOICES)):
        section_name, _, key = hook.key.partition(".")
        section = getattr(config, section_name)
        value = getattr(section, key)
        if value is None:
            continue
        if isinstance(value, str):
            resolved = hook.resolve_path(value, base)
        elif isinstance(value, dict):
            resolved = {hook.resolve_path(name, base): item for name, item in value.items()}
        else:
            resolved = [hook.resolve_path(item, base) for item in value]
        section = msgspec.structs.replace(section, **{key: resolved})
        config = msgspec.structs.replace(config, **{section_name: section})
    datasets = {
        name: msgspec.structs.replace(data, rm_type=data.rm_type and REWARD.resolve_path(data.rm_type, base))
        for name, data in config.eval.datasets.items()
    }
    return msgspec.structs.replace(config, eval=msgspec.structs.replace(config.eval, datasets=datasets))


def check(config: RunConfig) -> None:
    """Load every function that ``config`` names, and make its policy. Raises HookError, HookFailed, one line."""
    for hook in HOOKS:
        _check(hook, config)
    for name, its_config in dataset_configs(config).items():
        if config.eval.datasets[name].rm_type is not None:
            for hook in (REWARD, GROUP_REWARD):
                _check(hook, its_config, f"eval.datasets.{name}.rm_type")
    check_policy(config)


def _check(hook: Hook, config: RunConfig, key: str = "") -> None:
    """``key``: what the hook's own is called there."""
    for value in hook.values(config):
        if value not in hook.built_in or value in hook.needs:
            (replace(hook, key=key) if key else hook).load(value)


def table() -> str:
    """The list in Markdown, as ``docs/customization.md`` has it: ``python -m miles_async.cli.hook_points``."""
    lines = ["| key | called with | gives | default | built-ins |", "|---|---|---|---|---|"]
    for hook in HOOKS:
        called = ", ".join(hook.parameters)
        lines.append(f"| `{hook.key}` | ({called}) | {hook.returns} | {hook.default} | {hook.listing()} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
