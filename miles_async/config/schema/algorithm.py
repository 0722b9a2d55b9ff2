"""What is made of rewards and log-probs: advantages, losses, corrections."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from miles_async.config.schema.section import CountFloat, CountInt, PositiveFloat, PositiveInt, Section, Share


class Algorithm(Section, frozen=True):
    """Functions are named as built-ins (docs/customization.md has the lists), or by paths to functions of the user; the
    mathematics of each is in docs/algorithms.md."""

    loss_type: Literal["policy_loss", "sft_loss"] = "policy_loss"  # sft_loss: likelihood of the tokens, no rewards
    advantage_estimator: str = "grpo"  # how rewards become advantages
    policy_loss: str | None = None  # None: gspo with that estimator, else ppo_clip
    # What an asynchronous run does about tokens of another policy than the learner's: one name or several. "behaviour": the
    # engine's log-probs are the loss's denominator; "uncorrected": nothing. A run with staleness.max_lag > 0 has to say.
    correction: str | list[str] | None = None
    # The PPO denominator: the engine's log-probs, the learner's own before the batch, or between the two by lag (A-3PO).
    # None: what the correction needs, and "rollout" without one.
    old_log_probs: Literal["rollout", "recompute", "loglinear"] | None = None
    # of "recompute": the learner's log-probs are those of the version that sampled the token, whose weights it keeps: a copy in
    # host memory for each version of staleness.max_lag
    keep_old_actor: bool = False
    grpo_std_normalization: bool = True  # divide by the standard deviation of the group's rewards
    # of "grpo", "gspo" and "reinforce_plus_plus_baseline": the reward itself, not compared with its group's
    disable_rewards_normalization: bool = False
    normalize_advantages: bool | None = None  # whiten over the whole batch; None: as the estimator needs
    gamma: Share = 1.0  # discount of a reward for each token before it
    lambd: Share = 1.0  # of generalised advantage estimation
    eps_clip: PositiveFloat = 0.2  # how far the ratio of a token may move and still count, downwards
    eps_clip_high: PositiveFloat | None = None  # upwards; None: eps_clip
    eps_clip_c: Annotated[float, Meta(gt=1)] | None = None  # dual clip: how far the ratio of a bad token counts
    loss_aggregation: str = "token"  # mean over tokens; "sample": of per-sample means; "constant": sums / loss_constant
    loss_constant: PositiveFloat | None = None  # tokens of "constant"; None: rollout.rollout_max_response_len
    entropy_coef: CountFloat = 0.0  # of the entropy in the loss
    # estimator of the KL to the reference model in the loss
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = "k1"
    # KL to the reference model as a part of the loss; with kl_loss_coef = 0 it is only measured
    use_kl_loss: bool = False
    kl_loss_coef: CountFloat = 0.0  # of that KL in the loss
    use_unbiased_kl: bool = False  # that KL times policy / behaviour, whatever old_log_probs is
    kl_coef: CountFloat = 0.0  # KL to the reference model in the reward
    ref_load: str | None = None  # the reference: a Hugging Face directory; None: model.hf_checkpoint
    ref_update_interval: PositiveInt | None = None  # versions after which the policy becomes the reference; None: never
    use_opd: bool = False  # on-policy distillation: advantages - opd_kl_coef (log-prob - teacher's)
    opd_kl_coef: CountFloat = 1.0  # of the teacher in the advantages
    # distil by the teacher's so many likeliest tokens at each position (k * 8 bytes for each token on the bus); 0: by the
    # sampled token
    opd_log_prob_top_k: CountInt = 0
    # by all of those tokens, or by those that are the learner's k likeliest, too
    opd_top_k_strategy: Literal["only-teacher", "intersection"] = "only-teacher"
    # how each of those tokens weighs, normalised over them
    opd_top_k_weight: Literal["student_p", "teacher_p", "none"] = "student_p"
    tis_clip: PositiveFloat = 2.0  # upper bound of the ratio, for tis, icepop and span_tis
    tis_clip_low: CountFloat = 0.0  # and the lower one
    # what mis looks at: the ratio of a token, of a sample, or the geometric mean of a sample
    mis_level: Literal["token", "sequence", "geometric"] = "token"
    mis_mode: Literal["truncate", "clip", "mask"] = "truncate"  # what mis does with a ratio out of bounds
    mis_upper: PositiveFloat = 2.0  # greatest ratio of mis
    mis_lower: PositiveFloat | None = 0.5  # least ratio; None: 1 / mis_upper
    mis_batch_normalize: bool = False  # weights with a mean of 1 over the batch
    rs_level: Literal["token", "sequence", "geometric"] = "geometric"  # what rs looks at, as mis_level
    rs_upper: PositiveFloat = 1.001  # greatest ratio of rs
    rs_lower: PositiveFloat | None = None  # least ratio; None: 1 / rs_upper
    rs_veto_threshold: Annotated[float, Meta(gt=0, lt=1)] = 1e-4  # a token with a ratio below this rejects its sample
    opsm_delta: CountFloat = 1e-4  # divergence above which opsm rejects a bad sample
    m2po_threshold: PositiveFloat = 0.04  # second moment of the log-ratios that m2po leaves
    dppo_tv_threshold: CountFloat = 0.2  # how far dppo lets the probability of a token move
    dppo_kl_coef: CountFloat = 1e-3  # of the squared log-ratio in dppo
    # warn when the learner's and the engines' log-probs of the same version's tokens differ by more than this, on average
    mismatch_warn: PositiveFloat = 0.05

    @property
    def upper_clip(self) -> float:
        """``eps_clip_high``, or what is meant where it is unset."""
        return self.eps_clip if self.eps_clip_high is None else self.eps_clip_high


def corrections(algorithm: Algorithm) -> tuple[str, ...]:
    """The corrections by name, in order."""
    named = algorithm.correction
    return () if named is None else (named,) if isinstance(named, str) else tuple(named)


def old_log_probs(algorithm: Algorithm) -> str:
    """The denominator that is meant where the key is unset."""
    if algorithm.old_log_probs is not None:
        return algorithm.old_log_probs
    if algorithm.keep_old_actor:
        return "recompute"
    named = corrections(algorithm)
    return "rollout" if not named or "behaviour" in named else "recompute"
