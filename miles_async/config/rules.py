"""What no single key of a configuration can show to be wrong.

Promises: a combination that could not work, or would silently do something else than it says, is refused with one line that
names the keys, their values and what is allowed. Pure: what other rooms know is asked in ``cli/load.py``.
"""

from __future__ import annotations

from miles_async.config.optimizer_steps import check as check_steps
from miles_async.config.schema import (
    CORRECTIONS,
    WHITENED,
    WITHOUT_CRITIC,
    WITHOUT_REWARD_KL,
    Algorithm,
    ConfigError,
    Critic,
    RunConfig,
    corrections,
    old_log_probs,
)


def check(config: RunConfig) -> None:
    """All of the checks. Raises ConfigError."""
    if config.rollout.rollout_batch_size % config.learner.num_ranks:
        raise ConfigError(
            f"rollout.rollout_batch_size = {config.rollout.rollout_batch_size} must be a multiple of "
            f"learner.num_ranks = {config.learner.num_ranks}"
        )
    check_steps(config)
    check_rollout(config)
    check_rewards(config)
    check_algorithm(config)
    check_bounds(config.algorithm)
    check_critic(config)
    check_engine(config)
    if config.router.args and config.router.kind != "sglang":
        raise ConfigError(f'router.args = {config.router.args} are flags of router.kind = "sglang"')
    check_router_access(config)
    if config.weights.update_interval > config.staleness.max_lag + 1:
        raise ConfigError(
            f"weights.update_interval = {config.weights.update_interval} can never meet staleness.max_lag = "
            f"{config.staleness.max_lag}: at most {config.staleness.max_lag + 1}"
        )
    check_eval(config)


def check_router_access(config: RunConfig) -> None:
    """Refuse what would look like a protection and be none. Raises ConfigError."""
    router = config.router
    if router.kind == "sglang" and (router.admin_key is not None or router.allowed_engines):
        key = "admin_key" if router.admin_key is not None else "allowed_engines"
        raise ConfigError(
            f'router.{key} needs router.kind = "builtin": sglang-router has one key for everything, and whoever may '
            "generate may add engines there"
        )


def check_engine(config: RunConfig) -> None:
    """Refuse engines that are nowhere, and servers that would be no engines of a run. Raises ConfigError."""
    engine, weights = config.engine, config.weights
    if engine.kind == "external" and not engine.urls:
        raise ConfigError('engine.urls is empty: engine.kind = "external" needs at least one URL')
    if engine.kind != "sglang" and engine.tp_size > 1:
        raise ConfigError(
            f'engine.tp_size = {engine.tp_size} needs engine.kind = "sglang": an embedded engine has one rank, and external '
            "servers say themselves how many they have"
        )
    if engine.hang_timeout_s is not None and engine.hang_timeout_s <= weights.timeout_s:
        raise ConfigError(
            f"engine.hang_timeout_s = {engine.hang_timeout_s:g} must be more than weights.timeout_s = {weights.timeout_s:g}: "
            "a server stands still while it takes weights"
        )


def check_rollout(config: RunConfig) -> None:
    """Refuse what could never make a batch, or would be ignored. Raises ConfigError."""
    rollout = config.rollout
    if rollout.surplus < 0:
        raise ConfigError(
            f"rollout.over_sampling_batch_size = {rollout.over_sampling_batch_size} must be at least "
            f"rollout.rollout_batch_size = {rollout.rollout_batch_size}"
        )
    if rollout.generate_function == "multi_turn" and rollout.execute_tool_function is None:
        raise ConfigError(
            'rollout.execute_tool_function is missing: rollout.generate_function = "multi_turn" needs a function '
            "async (name, arguments, metadata) -> str that makes a tool's answer"
        )
    if rollout.generate_function == "agent" and rollout.agent_function is None:
        raise ConfigError(
            'rollout.agent_function is missing: rollout.generate_function = "agent" needs a function (task) that plays one '
            "rollout against task.base_url"
        )
    if rollout.adaptive_in_flight and config.router.kind != "builtin":
        raise ConfigError(
            f'rollout.adaptive_in_flight = true needs router.kind = "builtin": "{config.router.kind}" does not say how busy '
            "the engines are"
        )
    if rollout.mask_offpolicy_in_partial_rollout and not rollout.partial_rollout:
        raise ConfigError(
            "rollout.mask_offpolicy_in_partial_rollout = true needs rollout.partial_rollout = true: else no sample goes on "
            "after an abort"
        )


def check_rewards(config: RunConfig) -> None:
    """Refuse a sum without addends, addends that nobody sums, and a server that cannot be asked. Raises ConfigError."""
    reward = config.reward
    named = {
        reward.rm_type,
        *reward.rm_types,
        *(data.rm_type for data in config.eval.datasets.values() if data.rm_type),
    }
    if "weighted_sum" in named and not reward.rm_weights:
        raise ConfigError(
            'reward.rm_weights is empty: "weighted_sum" needs a table of rewards and weights, such as {math = 1.0, f1 = 0.1}'
        )
    if reward.rm_weights and "weighted_sum" not in named:
        raise ConfigError('reward.rm_weights is not used: set reward.rm_type = "weighted_sum"')
    if "weighted_sum" in reward.rm_weights:
        raise ConfigError('reward.rm_weights: "weighted_sum" cannot be a part of itself')
    parts = [name.replace(":", ".").rpartition(".")[2] for name in reward.rm_weights]
    if doubled := [part for part in parts if parts.count(part) > 1]:
        raise ConfigError(
            f'reward.rm_weights: two of its rewards are called "{doubled[0]}", and so would be their parts'
        )
    asked = sorted(name for name in named | set(reward.rm_weights) if name.removeprefix("boxed_") == "remote_rm")
    if asked and reward.rm_url is None:
        raise ConfigError(f'reward.rm_url is missing: "{asked[0]}" needs the URL of a reward server')
    if reward.rm_url is not None and not reward.rm_url.startswith(("http://", "https://", "env:")):
        raise ConfigError('reward.rm_url: expected "http://...", "https://..." or "env:NAME"')


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
    if old == "rollout" and (useless := set(named) & set(CORRECTIONS) - {"behaviour", "opsm", "uncorrected"}):
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
    if algorithm.kl_coef > 0 and algorithm.advantage_estimator in WITHOUT_REWARD_KL:
        raise ConfigError(
            f"algorithm.kl_coef = {algorithm.kl_coef} has no effect with advantage_estimator = "
            f'"{algorithm.advantage_estimator}", which has one reward for a whole sample: use use_kl_loss and kl_loss_coef'
        )
    if algorithm.kl_loss_coef > 0 and not algorithm.use_kl_loss:
        raise ConfigError(f"algorithm.kl_loss_coef = {algorithm.kl_loss_coef} needs algorithm.use_kl_loss = true")
    if algorithm.advantage_estimator in WHITENED and algorithm.normalize_advantages is False:
        raise ConfigError(
            f'algorithm.advantage_estimator = "{algorithm.advantage_estimator}" needs normalize_advantages = true'
        )


def check_critic(config: RunConfig) -> None:
    """Refuse a critic's keys where there is none, and one that leaves the policy no step. Raises ConfigError."""
    critic, estimator = config.critic, config.algorithm.advantage_estimator
    sft = config.algorithm.loss_type == "sft_loss"
    if critic != Critic() and (sft or estimator in WITHOUT_CRITIC):
        key = next(k for k in critic.__struct_fields__ if getattr(critic, k) != getattr(Critic(), k))
        why = 'algorithm.loss_type = "sft_loss"' if sft else f'algorithm.advantage_estimator = "{estimator}"'
        raise ConfigError(f'critic.{key} = {getattr(critic, key)} has no effect: {why} has no critic, "ppo" has one')
    if critic.num_critic_only_steps >= config.run.num_steps:
        raise ConfigError(
            f"critic.num_critic_only_steps = {critic.num_critic_only_steps} leaves the policy none of run.num_steps = "
            f"{config.run.num_steps}"
        )


# what a dataset cannot be called: eval/NAME is the name of a metric
EVAL_METRICS = ("version", "lag_steps", "duration_seconds")


def check_eval(config: RunConfig) -> None:
    """Refuse an evaluation that could make no point. Raises ConfigError."""
    section, interval, step = config.eval, config.eval.eval_interval, config.weights.update_interval
    for name in section.datasets:
        if name in EVAL_METRICS or name.startswith("skipped_"):
            raise ConfigError(f"eval.datasets.{name}: eval/{name} is a metric already, choose another name")
    if interval is None:
        return
    if not section.datasets:
        raise ConfigError(
            f"eval.eval_interval = {interval} needs a dataset: a table [eval.datasets.NAME] with prompt_data"
        )
    if interval % step:
        raise ConfigError(
            f"eval.eval_interval = {interval} must be a multiple of weights.update_interval = {step}: other versions are not "
            "published"
        )
    if config.engine.kind == "external" and not section.urls:
        raise ConfigError('eval.urls is empty: with engine.kind = "external" the run has no engine to evaluate on')
    if shared := {url.rstrip("/") for url in section.urls} & {url.rstrip("/") for url in config.engine.urls}:
        raise ConfigError(f"eval.urls: {min(shared)} is in engine.urls too, so that training requests would reach it")


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
    if algorithm.eps_clip_c is not None and algorithm.policy_loss in ("cispo", "truncated_reinforce", "dppo"):
        raise ConfigError(
            f"algorithm.eps_clip_c = {algorithm.eps_clip_c} has no effect with policy_loss = "
            f'"{algorithm.policy_loss}": dual clip is of ppo_clip and gspo'
        )
