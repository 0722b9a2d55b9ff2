"""What rank 0 of the learner reports of each step: of its batch, its loss, its optimizer steps, and its time.

Means of the loss's parts are over the step's response tokens (``algorithm.loss_aggregation`` says how a token weighs), all
ranks and all optimizer steps that were made.
"""

from __future__ import annotations

from miles_async.groups.ages import AGES
from miles_async.monitor.metrics.metric import Metric

BATCH = (
    Metric("raw_reward", "reward", "mean over the samples of the reward as it was graded", "rollout/raw_reward"),
    Metric("reward_std", "reward", "mean over groups of the standard deviation of their rollouts' rewards"),
    Metric("reward_min", "reward", "the least reward that was trained on"),
    Metric("reward_max", "reward", "the greatest reward that was trained on"),
    Metric("reward/{part}", "reward", "mean over rollouts of a part of the reward, as the reward function names it"),
    Metric("zero_std_groups", "groups", "those whose rollouts all have the same reward, and so teach nothing"),
    Metric("response_lengths", "tokens", "mean length of a response", "rollout/response_lengths"),
    Metric("truncated", "share", "of the samples, those that ended at the length limit", "rollout/truncated"),
    Metric("n_samples", "samples", "in the batch"),
    Metric("n_tokens", "tokens", "of responses in the batch that are trained on"),
    Metric(
        "masked_tokens", "tokens", 'of the batch beyond `staleness.max_lag`, which "token_mask" leaves out of the loss'
    ),
    Metric("max_token_lag", "versions", "that the oldest token is behind the learner, of all groups of the batch"),
    Metric("mean_token_lag", "versions", "that a token is behind the learner, on average"),
    *(Metric(f"age/{name}", "versions", f"{says}; mean over the groups") for name, says in AGES.items()),
    Metric(
        "overrun_tokens",
        "tokens",
        "that are trained although they are beyond `staleness.max_lag` (with `staleness.hard_bound = false`)",
    ),
    Metric("overrun_samples", "samples", "that have such a token"),
    Metric("max_overrun", "versions", "that the oldest of these tokens is beyond `staleness.max_lag`"),
    Metric("batches", "batches", 'that the step is of, where its weights were held (`staleness.policy = "elastic"`)'),
    Metric(
        "mixed_version_ratio",
        "share",
        "of the samples, those whose tokens are of more than one weight version",
        "rollout/weight_version/mixed_version_ratio",
    ),
    Metric("dp_size", "replicas", "that the batch was split over: the learner's data-parallel size"),
    Metric("epoch", "epochs", "the last one that a prompt of the batch is of, from 0"),
)

LOSS = (
    Metric("loss", "1", "what is minimised, all terms of it", "train/loss"),
    Metric("pg_loss", "1", "the policy loss, with the corrections' weights", "train/pg_loss"),
    Metric("pg_clipfrac", "share", "of the tokens, those whose ratio is clipped", "train/pg_clipfrac"),
    Metric("ppo_kl", "nats", "mean of the log-ratio between the denominator and the learner", "train/ppo_kl"),
    Metric("ois", "1", "mean importance ratio between the learner and the denominator", "train/ois"),
    Metric("ess_ratio", "share", "effective sample size of those ratios, of each sample's tokens", "train/ess_ratio"),
    Metric("entropy_loss", "nats", "mean entropy of the learner's distribution of a token", "train/entropy_loss"),
    Metric("kl_loss", "nats", "mean KL to the reference model, by `algorithm.kl_loss_type`", "train/kl_loss"),
    Metric(
        "train_rollout_logprob_abs_diff",
        "nats",
        "mean distance of the learner's log-probs now from the engine's: lag and mismatch together",
        "train/train_rollout_logprob_abs_diff",
    ),
    Metric("train_rollout_kl", "nats", "KL of the engine's policy from the learner's, by k3", "train/train_rollout_kl"),
    Metric(
        "on_policy_logprob_abs_diff",
        "nats",
        "that distance for tokens of the learner's own version alone: mismatch without lag",
    ),
    Metric("opd_reverse_kl", "nats", "of the learner before the step from the teacher", "train/opd_reverse_kl"),
    Metric("values", "reward", "mean of the critic's values before the step", "rollout/values"),
    Metric("returns", "reward", "mean of what the critic learns", "rollout/returns"),
    Metric("critic-value_loss", "reward²", "the critic's loss", "train/critic-value_loss"),
    Metric(
        "critic-value_clipfrac", "share", "of the tokens, those whose value is clipped", "train/critic-value_clipfrac"
    ),
)

CORRECTIONS = (
    Metric(
        "tis", "1", "mean ratio of the denominator's probability to the engine's, before it is truncated", "train/tis"
    ),
    Metric("tis_clipfrac", "share", "of the tokens, those whose ratio is truncated", "train/tis_clipfrac"),
    Metric("tis_abs", "1", "mean distance of that ratio from 1", "train/tis_abs"),
    Metric(
        "mis_tis_weight_before_bound", "1", "mean ratio, of the level asked for", "train/mis_tis_weight_before_bound"
    ),
    Metric("mis_tis_weight_after_bound", "1", "mean weight that is left of it", "train/mis_tis_weight_after_bound"),
    Metric(
        "mis_tis_truncate_fraction", "share", "of the tokens, those above the bound", "train/mis_tis_truncate_fraction"
    ),
    Metric(
        "mis_tis_{mode}_fraction_low", "share", "of the tokens, those below it", "train/mis_tis_{mode}_fraction_low"
    ),
    Metric(
        "mis_tis_{mode}_fraction_high", "share", "of the tokens, those above it", "train/mis_tis_{mode}_fraction_high"
    ),
    Metric("mis_kl", "nats", "KL of the engine's policy from the denominator, by k1", "train/mis_kl"),
    Metric("mis_k3_kl", "nats", "the same by k3", "train/mis_k3_kl"),
    Metric("mis_chi2_token", "1", "chi-square divergence of the two, by token", "train/mis_chi2_token"),
    Metric("mis_chi2_seq", "1", "chi-square divergence of the two, by sample", "train/mis_chi2_seq"),
    Metric(
        "mis_rs_mask_fraction_low",
        "share",
        "of the tokens, those rejected from below",
        "train/mis_rs_mask_fraction_low",
    ),
    Metric(
        "mis_rs_mask_fraction_high",
        "share",
        "of the tokens, those rejected from above",
        "train/mis_rs_mask_fraction_high",
    ),
    Metric(
        "mis_rs_catastrophic_token_fraction",
        "share",
        "of the tokens, those below `algorithm.rs_veto_threshold`",
        "train/mis_rs_catastrophic_token_fraction",
    ),
    Metric(
        "mis_rs_catastrophic_seq_fraction",
        "share",
        "of the tokens, those of samples that have one below it",
        "train/mis_rs_catastrophic_seq_fraction",
    ),
    Metric("opsm_clipfrac", "share", "of the tokens, those of samples that OPSM rejects", "train/opsm_clipfrac"),
    Metric("m2po_masked", "share", "of the tokens, those that M2PO rejects"),
)

STEPS = (
    Metric("grad_norm", "1", "mean norm of the gradient, before it is clipped", "train/grad_norm"),
    Metric("lr", "1", "mean learning rate", "train/lr-pg_0"),
    Metric("critic-grad_norm", "1", "the same of the critic's gradient", "train/critic-grad_norm"),
    Metric("critic-lr", "1", "the critic's learning rate"),
    Metric(
        "moe_max_load", "ratio", "of a mixture: tokens of the busiest expert over the mean, of each layer; its mean"
    ),
    Metric(
        "moe_aux_loss", "1", "mean over sequences and layers of experts' balance; 1: even", "train/load_balancing_loss"
    ),
    Metric("moe_z_loss", "1", "mean over tokens and layers of the router's squared log of its sum", "train/z_loss"),
    *(Metric(f"critic-moe_{name}", "1", "the same of the critic") for name in ("max_load", "aux_loss", "z_loss")),
    Metric("optimizer_steps", "steps", "that were made with the batch"),
    Metric("empty_steps", "steps", "that had no token to train"),
    Metric("skipped_steps", "steps", "that were left out for a gradient that is inf or nan"),
    Metric("perf/train_time", "s", "of the step itself, the offer of its weights included", "perf/train_time"),
    Metric("perf/train_wait_time", "s", "that the learner waited for the batch before it", "perf/train_wait_time"),
    Metric("perf/step_time", "s", "both together", "perf/step_time"),
    Metric(
        "perf/save_model_time",
        "s",
        "that the learner stood still for a checkpoint since the step before",
        "perf/save_model_time",
    ),
    Metric(
        "perf/save_write_time", "s", "from the copy of a checkpoint until it was durable, by `checkpoint.async_save`"
    ),
)
