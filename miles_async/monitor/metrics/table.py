"""The table of all metrics, by who reports them. Pure; ``docs/metrics.md`` is made from it."""

from __future__ import annotations

from miles_async.monitor.metrics import learner, rollouts, serving
from miles_async.monitor.metrics.metric import Metric

EVERYBODY = (
    Metric(
        "refused/{actor}/{what}", "messages", "so far, that the actor refused: by topic, or requests by HTTP status"
    ),
)
MONITOR = (Metric("start", "starts", "of the run before this one: the first has 0"),)

# who reports them: title of the section, role of the actor ("": any), metrics
TABLE: tuple[tuple[str, str, tuple[Metric, ...]], ...] = (
    ("The learner, of a batch", "learner", learner.BATCH),
    ("The learner, of the loss", "learner", learner.LOSS),
    ("The learner, of what `algorithm.correction` does", "learner", learner.CORRECTIONS),
    ("The learner, of its steps", "learner", learner.STEPS),
    ("Rollout workers", "rollout", rollouts.WORKERS),
    ("The supervisor, of the ledger (`actor` is `ledger`)", "ledger", rollouts.LEDGER),
    ("The router", "router", serving.ROUTER),
    ("The broadcaster", "broadcaster", serving.BROADCASTER),
    ("The evaluator", "evaluator", rollouts.EVALUATOR),
    ("The supervisor, of the run's starts (`actor` is `monitor`)", "monitor", MONITOR),
    ("Every actor, and the supervisor", "", EVERYBODY),
)


def declared(name: str, role: str) -> Metric | None:
    """The metric that an actor of ``role`` reports under ``name``."""
    metrics = (metric for _, of, metrics in TABLE if of in ("", role) for metric in metrics)
    return next((metric for metric in metrics if metric.is_called(name)), None)
