"""What the run says of optimizer steps that changed nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from miles_async.config.schema import RunConfig
from miles_async.rl.hooks import CORRECTION, POLICY_LOSS


def warnings(metrics: Mapping[str, float], config: RunConfig) -> Iterator[tuple[str, str]]:
    """The events of a batch, by the metrics of its optimizer steps: kind and one line."""
    made, empty, skipped = (int(metrics.get(f"{name}_steps", 0)) for name in ("optimizer", "empty", "skipped"))
    of = f"of {made + empty + skipped} optimizer steps"
    if skipped:
        yield (
            "steps_skipped",
            f"{skipped} {of} skipped: the gradient is inf or nan; its groups change no weight. More than "
            f"learner.max_skipped_steps = {config.learner.max_skipped_steps} in a row end the run{suspects(config)}",
        )
    if empty:
        yield (
            "nothing_to_learn",
            f"{empty} {of} had no token to train: every response is empty or masked out (loss_mask, rollout.sample_filter); "
            "no weight changes",
        )


def suspects(config: RunConfig) -> str:
    """The functions of the user's whose results may be inf or nan, as the end of a line; empty where there are none.

    An estimator and an aggregation are held to finite numbers (rl/checked.py); of these two the device would have to be
    waited for.
    """
    names = [
        f'{hook.key} = "{value}"'
        for hook in (POLICY_LOSS, CORRECTION)
        for value in hook.values(config)
        if value not in hook.built_in
    ]
    return f"; nobody holds {' or '.join(names)} to finite numbers: look there first" if names else ""
