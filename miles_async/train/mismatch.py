"""Whether the engines and the learner compute the same policy, by the tokens that the learner's own version sampled.

Those have lag 0: where their log-probs differ, the difference is no staleness, and no correction is meant for it.
"""

from __future__ import annotations

CAUSES = (
    "rollout_temperature, top_p or top_k that the engine applies to its log-probs and the learner does not; another dtype "
    "or attention kernel in the engine; of a mixture, other experts than the engine's (rollout.routing_replay); weights that "
    "did not arrive whole; cached prefixes of an earlier version; a custom generate function that re-tokenises"
)


def warning(metrics: dict[str, float], threshold: float) -> str:
    """One line if the mean |learner - engine| log-prob exceeds ``threshold``, else empty."""
    apart = metrics.get("on_policy_logprob_abs_diff", 0.0)
    if apart <= threshold:
        return ""
    return (
        f"log-probs of the learner and of the engines differ by {apart:.3g} on average on tokens of the learner's own "
        f"version (algorithm.mismatch_warn = {threshold:g}); likely causes: {CAUSES}"
    )
