"""What no single key of ``[algorithm]`` and ``[critic]`` can show to be wrong, by what the built-ins say of themselves.

Promises: a combination that could not work, would train nothing, or would silently do something else than it says, is refused
with one line that names the keys, their values and what is allowed. Pure; no torch.
"""

from __future__ import annotations

from miles_async.config.schema import Algorithm, ConfigError, Critic, RunConfig, corrections, old_log_probs
from miles_async.rl.builtin.table import CORRECTIONS, ESTIMATORS, POLICY_LOSSES


def check(config: RunConfig) -> None:
    """All of the checks. Raises ConfigError."""
    check_algorithm(config)
    check_bounds(config.algorithm)
    check_critic(config)
    check_groups(config)


def check_algorithm(config: RunConfig) -> None:
    """Refuse combinations that would do silently something else than they say. Raises ConfigError."""
    algorithm, lag = config.algorithm, config.staleness.max_lag
    named = corrections(algorithm)
    if lag > 0 and not named and algorithm.loss_type == "policy_loss" and not algorithm.keep_old_actor:
        raise ConfigError(
            f"algorithm.correction is missing: a run with staleness.max_lag = {lag} trains on tokens of older policies and "
            f"has to say what it does about that: one or several of {', '.join(CORRECTIONS)}, or a path to a function "
            '(the plain choice: "behaviour", the engine\'s log-probs as the denominator)'
        )
    if algorithm.keep_old_actor and not config.staleness.hard_bound:
        raise ConfigError(
            f"algorithm.keep_old_actor = true keeps the weights of staleness.max_lag = {lag} versions: with "
            "staleness.hard_bound = false older tokens may be trained"
        )
    if algorithm.keep_old_actor and algorithm.old_log_probs not in (None, "recompute"):
        raise ConfigError(
            f'algorithm.keep_old_actor = true is a way to recompute: algorithm.old_log_probs = "{algorithm.old_log_probs}" '
            'has to be "recompute", or unset'
        )
    shown, old = f"algorithm.correction = {list(named)}", old_log_probs(algorithm)
    if "uncorrected" in named and len(named) > 1:
        raise ConfigError(f'{shown}: "uncorrected" goes with no other one')
    if "behaviour" in named and old != "rollout":
        raise ConfigError(f'{shown} is algorithm.old_log_probs = "rollout", which is set to "{old}"')
    if len(set(named)) < len(named):
        raise ConfigError(f"{shown}: one of them is named twice, and would count twice")
    weighing = {name for name, entry in CORRECTIONS.items() if entry.weighs}
    if old == "rollout" and (useless := set(named) & weighing):
        raise ConfigError(
            f'{shown}: {sorted(useless)} would weigh every token 1, since algorithm.old_log_probs = "rollout" makes the '
            'behaviour policy the denominator already; use "recompute" or "loglinear"'
        )
    if "uncorrected" in named and old == "rollout":
        raise ConfigError(f'{shown} ignores the behaviour policy, algorithm.old_log_probs = "rollout" does not')
    if algorithm.use_opd and not config.rollout.opd_teacher_urls:
        raise ConfigError(
            'algorithm.use_opd = true needs a teacher: rollout.opd_teacher_urls = {default = "http://..."}'
        )
    if algorithm.loss_type == "sft_loss" and config.rollout.rollout_function == "single_turn":
        raise ConfigError(
            'algorithm.loss_type = "sft_loss" needs rollout.rollout_function = "sft" (or one of the user): what is '
            "generated has no likelihood to raise"
        )
    if algorithm.kl_coef > 0 and algorithm.kl_loss_coef > 0:
        raise ConfigError(
            f"algorithm.kl_coef = {algorithm.kl_coef} and algorithm.kl_loss_coef = {algorithm.kl_loss_coef}: "
            "one of them has to be 0, KL belongs in one place"
        )
    estimator = ESTIMATORS.get(algorithm.advantage_estimator)
    if algorithm.kl_coef > 0 and estimator is not None and not estimator.reward_kl:
        raise ConfigError(
            f"algorithm.kl_coef = {algorithm.kl_coef} has no effect with advantage_estimator = "
            f'"{algorithm.advantage_estimator}", which has one reward for a whole sample: use use_kl_loss and kl_loss_coef'
        )
    if algorithm.kl_loss_coef > 0 and not algorithm.use_kl_loss:
        raise ConfigError(f"algorithm.kl_loss_coef = {algorithm.kl_loss_coef} needs algorithm.use_kl_loss = true")
    if estimator is not None and estimator.whitens and algorithm.normalize_advantages is False:
        raise ConfigError(
            f'algorithm.advantage_estimator = "{algorithm.advantage_estimator}" needs normalize_advantages = true'
        )


def check_critic(config: RunConfig) -> None:
    """Refuse a critic's keys where there is none, and one that leaves the policy no step. Raises ConfigError."""
    critic, name = config.critic, config.algorithm.advantage_estimator
    sft, estimator = config.algorithm.loss_type == "sft_loss", ESTIMATORS.get(name)
    if critic != Critic() and (sft or (estimator is not None and not estimator.has_critic)):
        key = next(k for k in critic.__struct_fields__ if getattr(critic, k) != getattr(Critic(), k))
        why = 'algorithm.loss_type = "sft_loss"' if sft else f'algorithm.advantage_estimator = "{name}"'
        raise ConfigError(f'critic.{key} = {getattr(critic, key)} has no effect: {why} has no critic, "ppo" has one')
    if critic.num_critic_only_steps >= config.run.num_steps:
        raise ConfigError(
            f"critic.num_critic_only_steps = {critic.num_critic_only_steps} leaves the policy none of run.num_steps = "
            f"{config.run.num_steps}"
        )


def check_bounds(algorithm: Algorithm) -> None:
    """Refuse bounds that leave nothing between them, and keys that nobody would look at. Raises ConfigError."""
    for name, lower, upper in (
        ("tis_clip", algorithm.tis_clip_low, algorithm.tis_clip),
        ("mis_upper", algorithm.mis_lower, algorithm.mis_upper),
        ("rs_upper", algorithm.rs_lower, algorithm.rs_upper),
    ):
        low = 1 / upper if lower is None else lower
        if low > upper:
            raise ConfigError(f"algorithm.{name} = {upper} is below its lower bound {low:g}: nothing lies between them")
    if algorithm.use_unbiased_kl and not algorithm.use_kl_loss:
        raise ConfigError("algorithm.use_unbiased_kl = true has no effect without algorithm.use_kl_loss = true")
    loss = POLICY_LOSSES.get(algorithm.policy_loss or "")
    if algorithm.eps_clip_c is not None and loss is not None and not loss.dual_clip:
        raise ConfigError(
            f"algorithm.eps_clip_c = {algorithm.eps_clip_c} has no effect with policy_loss = "
            f'"{algorithm.policy_loss}": dual clip is of ppo_clip and gspo'
        )


def check_groups(config: RunConfig) -> None:
    """Refuse groups in which no reward differs from its baseline by construction. Raises ConfigError."""
    algorithm, rollout = config.algorithm, config.rollout
    if algorithm.loss_type == "sft_loss" or algorithm.use_opd or rollout.n_samples_per_prompt > 1:
        return
    estimator = ESTIMATORS.get(algorithm.advantage_estimator)
    if estimator is not None and estimator.compares_in_group and not algorithm.disable_rewards_normalization:
        raise ConfigError(
            f'rollout.n_samples_per_prompt = 1 with algorithm.advantage_estimator = "{algorithm.advantage_estimator}" trains '
            "nothing: each reward is compared with the others of its group; at least 2, or an estimator without groups "
            '("ppo", "reinforce_plus_plus")'
        )
    if algorithm.advantage_estimator == "reinforce_plus_plus" and rollout.rollout_batch_size == 1:
        raise ConfigError(
            "rollout.rollout_batch_size = 1 with rollout.n_samples_per_prompt = 1 trains nothing: "
            '"reinforce_plus_plus" compares the samples of a batch; at least 2 of them'
        )
