"""Whether the files that a configuration names are there.

Promises: a checkpoint, a prompt file or a template that is not there is refused in one line that names key, path and what
is missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from miles_async.config.schema import ConfigError, Data, RunConfig
from miles_async.config.words import nearest, one_of
from miles_async.data.rows import PARQUET, sources, split_slice
from miles_async.data.source import FILES
from miles_async.engines.kinds.table import kind_of
from miles_async.models import builtin
from miles_async.models.kept_types import check_kept_types
from miles_async.models.layout_fit import check_layout
from miles_async.models.support import check_models
from miles_async.train.backend import computes


def check_files(config: RunConfig) -> None:
    """Refuse a checkpoint or prompt file that is not there. Raises ConfigError naming key, path and what is missing."""
    checkpoint = config.model.hf_checkpoint
    if builtin.is_builtin(checkpoint):
        _check_builtin("model.hf_checkpoint", checkpoint, builtin.MODELS)
    else:
        _check_checkpoint("model.hf_checkpoint", checkpoint)
    others = ("algorithm.ref_load", config.algorithm.ref_load), ("critic.critic_load", config.critic.critic_load)
    for key, other in others:
        if other is not None:
            _check_checkpoint(key, other)
    check_models(config, kind_of(config.engine).COMPUTES, computes(config))
    check_layout(config)
    check_kept_types(config)
    _check_data(config.data)
    if config.eval.eval_interval is not None:
        for name, dataset in config.eval.datasets.items():
            check_prompt_file(f"eval.datasets.{name}.prompt_data", dataset.prompt_data)


def _check_checkpoint(key: str, checkpoint: str) -> None:
    directory = Path(checkpoint)
    if not directory.is_dir():
        raise ConfigError(f'{key} = "{checkpoint}": no such directory')
    if not (directory / "config.json").is_file():
        raise ConfigError(f'{key} = "{checkpoint}": it has no config.json')
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(f'{key} = "{checkpoint}": it has no *.safetensors file')


def _check_data(data: Data) -> None:
    given, template = sources(data), data.chat_template_path
    if data.data_source == FILES:
        if not given:
            raise ConfigError("data.prompt_data is missing: a string or a list of strings")
        if data.prompt_weights is not None and len(data.prompt_weights) != len(given):
            raise ConfigError(
                f"data.prompt_weights = {data.prompt_weights}: expected one for each of {len(given)} sources"
            )
        for source in given:
            check_prompt_file("data.prompt_data", source)
    if template is not None and not Path(template).is_file():
        raise ConfigError(f'data.chat_template_path = "{template}": no such file')
    if taken := {"messages", "add_generation_prompt"} & set(data.apply_chat_template_kwargs):
        raise ConfigError(f'data.apply_chat_template_kwargs: "{min(taken)}" is set for each prompt and cannot be given')


def check_prompt_file(key: str, source: str) -> None:
    """Raises ConfigError naming ``key``: no slice, no such built-in, no such file, or Parquet that cannot be read here."""
    path, _ = split_slice(source, key)
    if builtin.is_builtin(path):
        _check_builtin(key, path, builtin.PROMPTS)
    elif not Path(path).is_file():
        raise ConfigError(f'{key} = "{path}": no such file')
    elif path.endswith(PARQUET) and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f'{key} = "{path}": a Parquet file needs the package pyarrow')


def _check_builtin(key: str, value: str, names: Iterable[str]) -> None:
    allowed = list(names)
    if value not in allowed:
        raise ConfigError(f'{key} = "{value}": there is no such built-in{nearest(value, allowed)}; {one_of(allowed)}')
