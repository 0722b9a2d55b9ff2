"""The extension points of an evaluation.

``eval.eval_function``: ``async (dataset, generate, grade) -> dict[str, float]`` evaluates one dataset at one point. What it
returns is published under ``eval/``; its names begin with the dataset's (``NAME``, ``NAME-pass@4``, ``NAME/turns/mean``).

    dataset                       a ``Dataset``: name, prompts, n_samples, config
    await generate(prompt)        the samples of one of its prompts, of exactly the version under evaluation
    await grade(prompt, samples)  their rewards, None where grading failed

Both may be called for many prompts at once: no more than ``eval.max_in_flight`` are generated at a time. What was graded is
in the point's record, whatever the function makes of it.

``eval.eval_log_function``: ``(version, results) -> None``, or awaitable, after each point; results: name to ``Result``.
"""

from __future__ import annotations

from miles_async.hooks.hook import Hook

EVAL_FUNCTION = Hook(
    "eval.eval_function",
    ("dataset", "generate", "grade"),
    form="either",
    returns="an awaitable of the metrics of one dataset, by name",
    default="mean reward, pass@k, ratios of truncated and of ungraded samples, response length",
)
EVAL_LOG_FUNCTION = Hook(
    "eval.eval_log_function",
    ("version", "results"),
    form="either",
    returns="nothing, or an awaitable of it",
    default="none: metrics, events and the files in eval/ are written in any case",
)

HOOKS = (EVAL_FUNCTION, EVAL_LOG_FUNCTION)
