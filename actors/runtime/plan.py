"""Which actors a configuration asks for: pure."""

from __future__ import annotations

from pathlib import Path

from actors.runtime.context import ActorSpec
from miles_async.config import RunConfig

# in which order they are asked to stop: first those who hand back their work or save it, then who serves them; the
# broadcaster before the engines, with which it may be in a collective
STOP_STAGES = (("dealer", "rollout", "learner"), ("broadcaster",), ("router", "engine"))


def topology(config: RunConfig) -> dict[str, int]:
    """How many processes of each role."""
    engines = len(config.engine.urls) if config.engine.kind == "external" else config.engine.num_engines
    return {
        "learner": config.learner.num_ranks,  # first: it takes longest to start
        "engine": engines,
        "router": 1,
        "broadcaster": 1,
        "rollout": config.rollout.num_workers,
        "dealer": 1,
    }


def specs(
    config: RunConfig, run_dir: Path, model_path: str, bus_url: str, run_id: str, incarnation: int
) -> list[ActorSpec]:
    """The actors of a run, in the order in which they are started."""
    return [
        ActorSpec(
            name=role if count == 1 and role in ("dealer", "router", "broadcaster") else f"{role}-{index}",
            role=role,
            index=index,
            path=getattr(config.topology, role),
            config=config,
            run_dir=run_dir,
            model_path=model_path,
            bus_url=bus_url,
            run_id=run_id,
            incarnation=incarnation,
        )
        for role, count in topology(config).items()
        for index in range(count)
    ]
