"""What no single key of ``[reward]`` can show to be wrong, by what the built-ins say of themselves.

Promises: a reward without the label that it compares with, a part that a reward does not give, a sum without addends and a
server that nobody named are refused with one line that names the keys, their values and what is allowed. Pure.
"""

from __future__ import annotations

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.rewards.table import BOXED, WEIGHTED_SUM, built_in, short_name


def check_rewards(config: RunConfig) -> None:
    """Refuse a sum without addends, addends that nobody sums, and a server that cannot be asked. Raises ConfigError."""
    reward = config.reward
    named = {
        reward.rm_type,
        *reward.rm_types,
        *(data.rm_type for data in config.eval.datasets.values() if data.rm_type),
    }
    if WEIGHTED_SUM in named and not reward.rm_weights:
        raise ConfigError(
            f'reward.rm_weights is empty: "{WEIGHTED_SUM}" needs a table of rewards and weights, such as '
            "{math = 1.0, f1 = 0.1}"
        )
    if reward.rm_weights and WEIGHTED_SUM not in named:
        raise ConfigError(f'reward.rm_weights is not used: set reward.rm_type = "{WEIGHTED_SUM}"')
    if WEIGHTED_SUM in reward.rm_weights:
        raise ConfigError(f'reward.rm_weights: "{WEIGHTED_SUM}" cannot be a part of itself')
    parts = [short_name(name) for name in reward.rm_weights]
    if doubled := [part for part in parts if parts.count(part) > 1]:
        raise ConfigError(
            f'reward.rm_weights: two of its rewards are called "{doubled[0]}", and so would be their parts'
        )
    asked = sorted(name for name in named | set(reward.rm_weights) if (entry := built_in(name)) and entry.asks_server)
    if asked and reward.rm_url is None:
        raise ConfigError(f'reward.rm_url is missing: "{asked[0]}" needs the URL of a reward server')
    if reward.rm_url is not None and not reward.rm_url.startswith(("http://", "https://", "env:")):
        raise ConfigError('reward.rm_url: expected "http://...", "https://..." or "env:NAME"')


def check_labels(config: RunConfig) -> None:
    """Refuse a reward that compares with a label where no prompt has one, and a part that a reward does not have.

    Raises ConfigError.
    """
    reward, graded = config.reward, is_graded(config)
    if graded and config.data.label_key is None and config.data.data_source == "files":
        _refuse_unlabelled("data.label_key", "none", reward.rm_type)
    for name, data in config.eval.datasets.items():
        unlabelled = data.label_key == "" or (data.label_key is None and config.data.label_key is None)
        if unlabelled:
            _refuse_unlabelled(
                f"eval.datasets.{name}.label_key", data.label_key or "none", data.rm_type or reward.rm_type
            )
    key, entry, name = reward.reward_key, built_in(reward.rm_type), reward.rm_type.removeprefix(BOXED)
    if key is None or reward.rm_types or not graded or entry is None or entry.parts is None:
        return
    if not entry.parts:
        raise ConfigError(f'reward.reward_key = "{key}" has no effect: reward.rm_type = "{name}" gives one number')
    if key not in entry.parts:
        raise ConfigError(f'reward.reward_key = "{key}": reward.rm_type = "{name}" gives {", ".join(entry.parts)}')


def is_graded(config: RunConfig) -> bool:
    """Whether a function of ``[reward]`` grades every sample: an agent, or a function of the user's, may do it itself."""
    rollout = config.rollout
    return rollout.rollout_function in ("single_turn", "per_sample") and rollout.generate_function in (
        "single_turn",
        "multi_turn",
    )


def _refuse_unlabelled(key: str, value: str, rm_type: str) -> None:
    entry = built_in(rm_type)
    if entry is not None and entry.compares_with_label and not entry.instead_of_label:
        raise ConfigError(
            f'{key} = "{value}": the reward "{rm_type}" compares with a label; name the key of the prompts that has it'
        )
