"""Writes the pages of this directory that are made from the code: ``make docs``.

``tests/source/test_generated_documents.py`` holds each of them to what the code says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from miles_async.monitor.metrics.table import TABLE

METRICS = """# Metrics

Every line of `metrics.jsonl` has an actor, a step (the learner's version), a time, and values by name. TensorBoard shows the
same, with `train/` or the actor's name before a name that has no group. `{word}` stands for a name of the run's own. *Miles* is
the name of the same number there. What is yours (`learner.log_function`, `eval.eval_function`, a policy loss, a correction, a
learner backend) reports beside these, under the names that it gives.

This page is made from `miles_async/monitor/metrics/` by `make docs`.
"""


def metrics() -> str:
    """Every metric, by who reports it."""
    parts = [METRICS]
    for title, _, found in TABLE:
        rows = [f"| `{m.name}` | {m.unit} | {m.says} | {f'`{m.miles}`' if m.miles else ''} |" for m in found]
        parts.append(
            "\n".join([f"## {title}\n", "| name | unit | what it is | Miles |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {"metrics.md": metrics}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page())
