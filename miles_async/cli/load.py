"""A run's TOML file to a configuration that every room has looked at.

Promises: whatever is wrong with the file, an override, or what they name comes back as one ``ConfigError`` line that names
the key, its value and what is allowed (and the nearest valid name); relative paths mean "beside the TOML file", so the
loaded configuration means the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from miles_async.cli import hook_points
from miles_async.cli.files import check_files
from miles_async.config import effect, rules, secrets, toml
from miles_async.config.effect import Rule, check_effect
from miles_async.config.learnable import check_learnable
from miles_async.config.schema import Data, Eval, EvalDataset, RunConfig
from miles_async.data.rows import partition_slice
from miles_async.data.source import FILES
from miles_async.engines.kinds import table as kinds
from miles_async.groups.replay import check_replay
from miles_async.models import builtin
from miles_async.models.context_length import check_lengths
from miles_async.monitor import trackers
from miles_async.rewards.rules import check_labels, check_rewards
from miles_async.rl import effect as algorithm_effect
from miles_async.rl import rules as algorithm
from miles_async.router import addresses
from miles_async.router import kinds as router_kinds
from miles_async.runs import places
from miles_async.train import backend
from miles_async.weights.transports import table as transports


def load(path: str | Path, overrides: Sequence[str] = (), *, check: bool = True) -> RunConfig:
    """The configuration in the TOML file ``path``, with ``section.key=value`` overrides on top.

    Relative paths inside are resolved against the file's directory; with ``check``, the files and the functions named in it
    are looked for, and the rules of every room applied. Raises ConfigError, one line.
    """
    path = Path(path)
    text = toml.text_of(path)
    return parse(text, overrides, source=str(path), base=path.resolve().parent, check=check)


def parse(
    text: str,
    overrides: Sequence[str] = (),
    *,
    source: str = "configuration",
    base: Path | None = None,
    check: bool = True,
) -> RunConfig:
    """Like :func:`load`, for TOML text; ``base`` is the directory of relative paths (None: the working directory)."""
    config = resolve_paths(toml.parse(text, overrides, source=source), base or Path.cwd())
    if check:
        check_all(config)
    return config


def check_all(config: RunConfig) -> None:
    """Whatever can be known to be wrong before anything starts. Raises ConfigError, one line."""
    transports.check(config)
    rules.check(config, check_rewards, kinds.check)
    router_kinds.check(config)
    algorithm.check(config)
    kinds.check_use(config)
    addresses.check(config)
    secrets.check(config)
    check_files(config)
    backend.check(config)
    places.check(config)
    trackers.check(config)
    hook_points.check(config)
    check_effect(config, effect_rules())
    check_labels(config)
    check_learnable(config)
    check_lengths(config)
    check_replay(config, kinds.kind_of(config.engine).RETURNS_ROUTES)


def effect_rules() -> list[Rule]:
    """Which keys have an effect only sometimes, as each room says it; of two useless keys the first one's is told."""
    return [
        *effect.RULES,
        *algorithm_effect.RULES,
        *kinds.effects(),
        effect.EVALUATION,
        *transports.effects(),
        *backend.effects(),
        effect.REDIS,
        *effect.TRACKING,
        effect.RECORD,
        *effect.PLACEMENT,
    ]


def resolve_paths(config: RunConfig, base: Path) -> RunConfig:
    """``config`` with the paths of files and directories (and of hooks in a file beside the TOML) made absolute."""
    replace = msgspec.structs.replace

    def absolute(value: str) -> str:
        return value if builtin.is_builtin(value) else str((base / Path(value).expanduser()).resolve())

    def optional(value: str | None) -> str | None:
        return None if value is None else absolute(value)

    config = hook_points.resolve_paths(config, base)
    return replace(
        config,
        bus=replace(config.bus, payload_dir=optional(config.bus.payload_dir)),
        model=replace(config.model, hf_checkpoint=absolute(config.model.hf_checkpoint)),
        algorithm=replace(config.algorithm, ref_load=optional(config.algorithm.ref_load)),
        critic=replace(config.critic, critic_load=optional(config.critic.critic_load)),
        data=_resolve_data(config.data, base, absolute),
        eval=replace(config.eval, datasets=_resolve_datasets(config.eval, absolute)),
        weights=replace(
            config.weights,
            snapshot_dir=optional(config.weights.snapshot_dir),
            delta_dir=optional(config.weights.delta_dir),
            mirror_dir=optional(config.weights.mirror_dir),
        ),
        placement=replace(config.placement, shared_dir=optional(config.placement.shared_dir)),
    )


def _resolve_data(data: Data, base: Path, absolute: Callable[[str], str]) -> Data:
    """What a data source of the user's is given is a path only where a file of that name lies beside the TOML."""

    def resolved(source: str) -> str:
        path, part = partition_slice(source)
        return absolute(path) + part if data.data_source == FILES or (base / path).is_file() else source

    given, template = data.prompt_data, data.chat_template_path
    return msgspec.structs.replace(
        data,
        prompt_data=resolved(given) if isinstance(given, str) else [resolved(source) for source in given],
        chat_template_path=None if template is None else absolute(template),
    )


def _resolve_datasets(section: Eval, absolute: Callable[[str], str]) -> dict[str, EvalDataset]:
    parts = {name: (data, *partition_slice(data.prompt_data)) for name, data in section.datasets.items()}
    return {
        name: msgspec.structs.replace(data, prompt_data=absolute(path) + part)
        for name, (data, path, part) in parts.items()
    }
