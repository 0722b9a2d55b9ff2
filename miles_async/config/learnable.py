"""A run that could not learn, or not even begin, however its keys are read.

Promises: a reward without the label that it compares with, schedules
that contradict themselves and sampling that no engine could do are refused with one line. Pure.
"""

from __future__ import annotations

from miles_async.config.schema import ConfigError, RunConfig

# the built-in rewards that compare with a label, those that give one number, and what the others give
LABELLED = ("graded_match", "exact_match", "f1", "dapo", "math", "deepscaler", "gemma_math")
_NUMBERS = (
    "graded_match",
    "exact_match",
    "f1",
    "gpqa",
    "random",
    "deterministic_random",
    "math",
    "deepscaler",
    "gemma_math",
)
PARTS = {"dapo": ("score", "acc")}


def check_learnable(config: RunConfig) -> None:
    """All of the checks. Raises ConfigError."""
    check_labels(config)
    check_schedules(config)
    check_sampling(config)


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
    key, name = reward.reward_key, reward.rm_type.removeprefix("boxed_")
    if key is None or reward.rm_types or not graded:
        return
    if name in _NUMBERS:
        raise ConfigError(f'reward.reward_key = "{key}" has no effect: reward.rm_type = "{name}" gives one number')
    if name in PARTS and key not in PARTS[name]:
        raise ConfigError(f'reward.reward_key = "{key}": reward.rm_type = "{name}" gives {", ".join(PARTS[name])}')


def is_graded(config: RunConfig) -> bool:
    """Whether a function of ``[reward]`` grades every sample: an agent, or a function of the user's, may do it itself."""
    rollout = config.rollout
    return rollout.rollout_function in ("single_turn", "per_sample") and rollout.generate_function in (
        "single_turn",
        "multi_turn",
    )


def _refuse_unlabelled(key: str, value: str, rm_type: str) -> None:
    if rm_type.removeprefix("boxed_") in LABELLED:
        raise ConfigError(
            f'{key} = "{value}": the reward "{rm_type}" compares with a label; name the key of the prompts that has it'
        )


def check_schedules(config: RunConfig) -> None:
    """Refuse learning rates that contradict each other. Raises ConfigError."""
    learner, critic = config.learner, config.critic
    rates = {"learner.lr": learner.lr} | ({} if critic.critic_lr is None else {"critic.critic_lr": critic.critic_lr})
    for key, rate in rates.items():
        if learner.min_lr > rate:
            raise ConfigError(
                f"learner.min_lr = {learner.min_lr} is above {key} = {rate}: the rate would rise as it decays"
            )
    if learner.lr_decay_steps is None:
        return
    warmups = {
        "learner.lr_warmup_steps": learner.lr_warmup_steps,
        "critic.critic_lr_warmup_steps": critic.critic_lr_warmup_steps,
    }
    for key, steps in warmups.items():
        if steps >= learner.lr_decay_steps:
            raise ConfigError(
                f"{key} = {steps} does not end before learner.lr_decay_steps = {learner.lr_decay_steps}, which counts from "
                "the first step"
            )


def check_sampling(config: RunConfig) -> None:
    """Refuse what no engine could sample with. Raises ConfigError."""
    section = config.eval
    for key, value in (
        ("rollout.rollout_top_k", config.rollout.rollout_top_k),
        ("eval.eval_top_k", section.eval_top_k),
        *((f"eval.datasets.{name}.top_k", data.top_k) for name, data in section.datasets.items()),
    ):
        if value is not None and value != -1 and value < 1:
            raise ConfigError(f"{key} = {value}: expected 1 or more, or -1 for the whole vocabulary")
    for key, stops in (
        ("rollout.rollout_stop", config.rollout.rollout_stop),
        *((f"eval.datasets.{name}.stop", data.stop) for name, data in section.datasets.items()),
    ):
        if stops and "" in stops:
            raise ConfigError(f"{key} = {stops}: an empty string ends every response before its first token")
    for key, ids in (
        ("rollout.rollout_stop_token_ids", config.rollout.rollout_stop_token_ids),
        *((f"eval.datasets.{name}.stop_token_ids", data.stop_token_ids) for name, data in section.datasets.items()),
    ):
        if ids and min(ids) < 0:
            raise ConfigError(f"{key} = {ids}: a token id is 0 or more")
