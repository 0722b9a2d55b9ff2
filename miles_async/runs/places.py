"""What a configuration asks of the machines of a Ray cluster: checked before anything starts. Pure, but that it looks whether
the package ray is there.

Promises: places that cannot be had, and an address that is none, are refused with one line.
"""

from __future__ import annotations

import importlib.util

from miles_async.config.elastic_ranks import rank_counts, suits
from miles_async.config.layout import layout_of
from miles_async.config.schema import ConfigError, ElasticLearner, Resources, RunConfig

RESHARDING = ("megatron", "fsdp")  # backends whose checkpoints any number of ranks can load
KEPT = ("learner", "engine", "rollout", "eval_engine")  # the roles whose places are kept for them


def cpus(config: RunConfig, role: str) -> float:
    """What an actor of ``role`` asks for where ``num_cpus`` is not given."""
    given = asked(config, role).num_cpus
    return given if given is not None else float(role in KEPT)


def asked(config: RunConfig, role: str) -> Resources:
    """What the configuration has of ``role``."""
    section: Resources = getattr(config.placement, role)
    return section


def elastic_bounds(config: RunConfig) -> tuple[int, int] | None:
    """Between how many engines there are, with ``placement.elastic``; None: as many as the configuration or somebody says."""
    elastic = config.placement.elastic
    if elastic.max_engines is None:
        return None
    return elastic.min_engines or config.engine.num_engines, elastic.max_engines


def check(config: RunConfig) -> None:
    """Refuse places that cannot be had. Raises ConfigError."""
    if config.placement.kind != "ray":
        return
    if importlib.util.find_spec("ray") is None:
        raise ConfigError('placement.kind = "ray": the package ray is not installed (pip install "miles-async[ray]")')
    if (address := config.placement.address) is not None:
        check_address("placement.address", address)
    check_elastic(config)
    check_elastic_learner(config)
    for role in KEPT:
        section = asked(config, role)
        if not (cpus(config, role) or section.num_gpus or section.resources):
            raise ConfigError(
                f"placement.{role}.num_cpus = 0: with neither CPUs nor GPUs nor resources Ray keeps no place for it"
            )


def check_elastic(config: RunConfig) -> None:
    """Refuse bounds that the run does not begin within. Raises ConfigError."""
    elastic, begins = config.placement.elastic, config.engine.num_engines
    if elastic.max_engines is None:
        if elastic.min_engines is not None:
            raise ConfigError(
                f"placement.elastic.min_engines = {elastic.min_engines} needs placement.elastic.max_engines"
            )
        return
    least = elastic.min_engines or begins
    if not least <= begins <= elastic.max_engines:
        raise ConfigError(
            f"engine.num_engines = {begins}, with which the run begins, must be from placement.elastic.min_engines = {least} "
            f"to placement.elastic.max_engines = {elastic.max_engines}"
        )


def check_elastic_learner(config: RunConfig) -> None:
    """Refuse a smaller learner that there can never be. Raises ConfigError."""
    section, wanted, key = config.placement.elastic_learner, config.learner.num_ranks, "placement.elastic_learner"
    least = section.min_ranks
    if least is None:
        if section != ElasticLearner():
            raise ConfigError(f"{key}.wait_s = {section.wait_s:g} needs {key}.min_ranks")
        return
    if least >= wanted:
        raise ConfigError(f"{key}.min_ranks = {least} must be less than learner.num_ranks = {wanted}")
    if section.wait_s >= config.run.watchdog_s:
        raise ConfigError(
            f"{key}.wait_s = {section.wait_s:g} must be less than run.watchdog_s = {config.run.watchdog_s:g}: a run that "
            "stands still for that long is called stalled"
        )
    if len(rank_counts(config)) == 1:
        nearest = next((ranks for ranks in range(least - 1, 0, -1) if suits(config, ranks)), None)
        said = "there is none" if nearest is None else f"the nearest is {nearest}"
        raise ConfigError(
            f"{key}.min_ranks = {least}: no number from it to {wanted - 1} is one of whole replicas "
            f"({layout_of(config.learner).model} ranks each) that rollout.rollout_batch_size = "
            f"{config.rollout.rollout_batch_size} prompt groups come out even on; {said}"
        )
    if config.learner.train_backend not in RESHARDING:
        raise ConfigError(
            f'{key}.min_ranks = {least}: learner.train_backend = "{config.learner.train_backend}" does not say that any number '
            f"of ranks goes on from its checkpoints; {' and '.join(RESHARDING)} do"
        )
    beside = asked(config, "broadcaster")
    if config.rollout.generates and (beside.num_cpus or beside.num_gpus or beside.resources):
        raise ConfigError(
            f"{key}.min_ranks = {least}: placement.broadcaster must ask for nothing: it goes with the learner's first rank, to "
            "where a place is kept for a rank alone"
        )


def check_address(what: str, address: str) -> None:
    """Refuse what is no address of a cluster's head; ``what`` says so. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if address == "auto" or (host and "/" not in host and port.isdecimal()):
        return
    why = ""
    if address.startswith("ray://"):
        why = ", and a launch is no Ray client: it runs on a machine of the cluster"
    elif address.startswith("http"):
        why = ", and that is where jobs are submitted: `ray job submit --address` takes it"
    raise ConfigError(f'{what} = "{address}": expected "HOST:PORT" of the cluster\'s head, or "auto"{why}')
