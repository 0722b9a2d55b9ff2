"""What rollout workers report of samples, the supervisor of the ledger's transitions, and the evaluator of its points."""

from __future__ import annotations

from miles_async.monitor.metrics.metric import Metric

WORKERS = (
    Metric("rollout/in_flight_samples", "samples", "of the worker whose tokens have not ended"),
    Metric("rollout/in_flight_limit", "samples", "that may be in flight at most"),
    Metric("rollout/canceled", "samples", "so far, that were called back because caches were full, to go on later"),
    Metric("rollout/sample_seconds", "s", "mean time of a sample since the last report"),
    Metric("rollout/sample_seconds_max", "s", "the longest of them"),
    Metric("rollout/tail_share", "share", "of a group's time, what is left when half of its samples have ended"),
    Metric(
        "rollout/unpaired_routes",
        "share",
        "of the tokens, those that replay leaves out: their engine returned the experts of a later pass",
    ),
)

LEDGER = (
    Metric("rollout/samples_made", "samples", "so far, in published groups"),
    Metric("rollout/samples_lost", "samples", "so far, left out of their groups"),
    Metric("rollout/samples_lost/{reason}", "samples", "of them, by reason"),
    Metric("drops/{reason}", "groups", "so far, that were refused: too old, a filter, a surplus"),
    Metric("errors/{reason}", "attempts", "so far, that failed, and groups that were given up for it"),
    Metric(
        "length_bias/trained_mean", "tokens", "mean length of the responses that were trained on, of settled groups"
    ),
    Metric("length_bias/dispatched_mean", "tokens", "mean length of the responses of all settled groups"),
    Metric("length_bias/ratio", "1", "of the two: below 1 training sees shorter answers than are made"),
    Metric("length_bias/ks", "share", "Kolmogorov-Smirnov distance of the two distributions"),
    Metric("length_bias/unknown_share", "share", "of the settled groups, those dropped before a length was known"),
)

EVALUATOR = (
    Metric("eval/{dataset}", "reward", "mean reward", "eval/{dataset}"),
    Metric("eval/{dataset}-pass@{k}", "share", "chance that one of k samples is right", "eval/{dataset}-pass@{k}"),
    Metric(
        "eval/{dataset}-truncated_ratio",
        "share",
        "of the samples, those that ended at the length limit",
        "eval/{dataset}-truncated_ratio",
    ),
    Metric(
        "eval/{dataset}-none_reward_ratio",
        "share",
        "of the samples, those that could not be graded",
        "eval/{dataset}-none_reward_ratio",
    ),
    Metric(
        "eval/{dataset}/response_len/mean", "tokens", "mean length of a response", "eval/{dataset}/response_len/mean"
    ),
    Metric("eval/version", "version", "of the weights that were evaluated"),
    Metric("eval/lag_steps", "versions", "that it was behind the newest one when its point was made", "eval/lag_steps"),
    Metric("eval/duration_seconds", "s", "that the point took", "eval/duration_seconds"),
    Metric("eval/skipped_{reason}", "1", "a version without its point, and why", "eval/skipped_{reason}"),
)
