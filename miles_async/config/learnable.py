"""A run that could not learn, or not even begin, however its keys are read.

Promises: schedules that contradict themselves, sampling that no engine could do and a filter that no group could pass are
refused with one line. Pure.
"""

from __future__ import annotations

from miles_async.config.schema import ConfigError, RunConfig


def check_learnable(config: RunConfig) -> None:
    """All of the checks. Raises ConfigError."""
    check_schedules(config)
    check_sampling(config)
    check_filter(config)


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


def check_filter(config: RunConfig) -> None:
    """Refuse the built-in filter that compares the rewards of a group where none could differ. Raises ConfigError."""
    rollout = config.rollout
    if rollout.dynamic_sampling_filter != "nonzero_std":
        return
    alone = rollout.n_samples_per_prompt == 1 and rollout.rollout_function in ("single_turn", "per_sample")
    if alone or rollout.rollout_function == "sft":
        why = "rollout.n_samples_per_prompt = 1" if alone else 'rollout.rollout_function = "sft" gives no rewards'
        raise ConfigError(
            f'rollout.dynamic_sampling_filter = "nonzero_std" refuses every group: {why}; it keeps those with different rewards'
        )
