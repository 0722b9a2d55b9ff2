"""Which actors a configuration asks for: pure."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from actors.runtime.spec import ActorSpec
from miles_async.config.schema import RunConfig, Topology
from miles_async.engines.kinds.table import number_of
from miles_async.router.kinds import kind_of as kind_of_router

REPLAYER = "actors.replayer.Replayer"  # in the place of the dealer, where a record is trained again

# in which order they are asked to stop: first those who hand back their work or save it, then who serves them; the
# broadcaster before the engines, with which it may be in a collective
STOP_STAGES = (("dealer", "rollout", "learner", "evaluator"), ("broadcaster",), ("router", "engine", "eval_engine"))


def topology(config: RunConfig) -> dict[str, int]:
    """How many processes of each role."""
    if config.replay.run is not None:  # its batches are there already
        return {"dealer": 1, "learner": config.learner.num_ranks}
    engines = number_of(config.engine)
    evaluates = config.eval.eval_interval is not None
    serving = {"engine": engines, "router": 1, "broadcaster": 1} if config.rollout.generates else {}
    evaluation = {"evaluator": 1, "eval_engine": len(config.eval.urls) or config.eval.num_engines} if evaluates else {}
    return {
        **serving,
        "rollout": config.rollout.num_workers,
        "dealer": 1,
        **evaluation,
        "learner": config.learner.num_ranks,  # last: it can be started last, since it imports most
    }


def _names(role: str, count: int) -> list[str]:
    if count == 1 and role in ("dealer", "router", "broadcaster", "evaluator"):
        return [role]
    return [f"{role}-{index}" for index in range(count)]


def names_of(config: RunConfig, roles: Collection[str]) -> frozenset[str]:
    """Every actor of these roles."""
    return frozenset(name for role, count in topology(config).items() if role in roles for name in _names(role, count))


def actor_names(config: RunConfig) -> frozenset[str]:
    """Every actor that a run has."""
    return names_of(config, topology(config))


def engine_names(config: RunConfig) -> frozenset[str]:
    """Every engine that a run has."""
    return frozenset(_names("engine", topology(config).get("engine", 0)))


def eval_engine_names(config: RunConfig) -> tuple[str, ...]:
    """Every engine that a run evaluates on: no training request reaches one."""
    return tuple(_names("eval_engine", topology(config).get("eval_engine", 0)))


def _class_path(config: RunConfig, role: str) -> str:
    path: str = getattr(config.topology, role)
    if role == "dealer" and config.replay.run is not None:
        return REPLAYER
    ours = role == "router" and path == Topology().router
    return kind_of_router(config.router).actor if ours else path


def specs(
    config: RunConfig, run_dir: Path, model_path: str, bus_url: str, run_id: str, incarnation: int
) -> list[ActorSpec]:
    """The actors of a run, in the order in which they are started."""
    return [
        ActorSpec(
            name=name,
            role=role,
            index=index,
            path=_class_path(config, role),
            config=config,
            run_dir=run_dir,
            model_path=model_path,
            bus_url=bus_url,
            run_id=run_id,
            incarnation=incarnation,
        )
        for role, count in topology(config).items()
        for index, name in enumerate(_names(role, count))
    ]
