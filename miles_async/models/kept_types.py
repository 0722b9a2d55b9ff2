"""``learner.fp32_parameters``: which weights a learner that computes in bfloat16 keeps in float32.

Promises: a pattern that matches no weight of the policy is refused before anything starts, with the name that is nearest, and
so are patterns that tell layers, or experts, apart: a checkpoint of Megatron's has the same weight of all in one tensor. Costs
no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.words import nearest, show
from miles_async.models import builtin
from miles_async.models.support import ModelError, read_config_json
from miles_async.models.tensor_names import tensor_types

KEY = "learner.fp32_parameters"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def is_kept(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Whether one of these names of a weight is meant."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def check_kept_types(config: RunConfig) -> None:
    """Refuse patterns of nothing, and where there is nothing to keep. Raises ConfigError."""
    learner, checkpoint = config.learner, config.model.hf_checkpoint
    if (
        not learner.fp32_parameters or config.model.dtype != "bfloat16"
    ):  # where it has no effect, config/effect.py says so
        return
    given = f"{KEY} = {show(learner.fp32_parameters)}"
    if config.model.model_provider:
        raise ConfigError(
            f"{given}: model.model_provider, a bridge of yours, says itself of which types its weights are"
        )
    if learner.lora_rank:
        raise ConfigError(f"{given}: with learner.lora_rank these weights stay as they are")
    try:
        names = builtin.tensor_names(checkpoint) if builtin.is_builtin(checkpoint) else _trained(checkpoint)
    except ModelError as error:
        raise ConfigError(f"{KEY}: {error}") from None
    for pattern in learner.fp32_parameters:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f'{KEY}: "{pattern}" matches no weight of {checkpoint}{nearest(pattern, names)}')
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_NUMBER.sub("*", name), []).append(name)
    for every, group in alike.items():
        others = [name for name in group if not is_kept([name], learner.fp32_parameters)]
        if 0 < len(others) < len(group):
            one = next(name for name in group if name not in others)
            raise ConfigError(
                f'{given} marks {one} and not {others[0]}, which are one tensor in a checkpoint; allowed: "{every}"'
            )


def _trained(directory: str) -> list[str]:
    """Without the layers that predict further tokens, which stand behind the others."""
    layers = read_config_json(directory)["num_hidden_layers"]
    found = {name: _LAYER.match(name) for name in tensor_types(directory)}
    return [name for name, layer in found.items() if layer is None or int(layer[1]) < layers]
