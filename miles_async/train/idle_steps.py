"""What the run says of optimizer steps that changed nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def warnings(metrics: Mapping[str, float], max_skipped: int) -> Iterator[tuple[str, str]]:
    """The events of a batch, by the metrics of its optimizer steps: kind and one line.

    max_skipped: how many in a row may be skipped.
    """
    made, empty, skipped = (int(metrics.get(f"{name}_steps", 0)) for name in ("optimizer", "empty", "skipped"))
    of = f"of {made + empty + skipped} optimizer steps"
    if skipped:
        yield (
            "steps_skipped",
            f"{skipped} {of} skipped: the gradient is inf or nan; its groups change no weight. More than "
            f"learner.max_skipped_steps = {max_skipped} in a row end the run",
        )
    if empty:
        yield (
            "nothing_to_learn",
            f"{empty} {of} had no token to train: every response is empty or masked out (loss_mask, rollout.sample_filter); "
            "no weight changes",
        )
