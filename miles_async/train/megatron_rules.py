"""What ``learner.train_backend = "megatron"`` cannot do, said before the start. Costs no torch, unless fields of Megatron's
own are given."""

from __future__ import annotations

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.words import show
from miles_async.train import megatron_args

# whose routers nobody can give experts to
_OWN_ROUTERS = ("moe_router_fusion", "enable_cuda_graph", "cuda_graph_impl")


def check(config: RunConfig) -> None:
    """Refuse what it cannot do. Raises ConfigError."""
    megatron_args.check(config)
    if config.rollout.routing_replay:
        _check_replay(config)


def _check_replay(config: RunConfig) -> None:
    learner = config.learner
    if config.model.model_provider:
        raise ConfigError(
            "rollout.routing_replay = true needs the routers of the built-in bridge: model.model_provider, a bridge of yours, "
            "builds its own"
        )
    if learner.batch_function:
        raise ConfigError(
            "rollout.routing_replay = true needs the built-in batch function, which takes each token's experts along; allowed "
            "here: no learner.batch_function"
        )
    for name in _OWN_ROUTERS:
        if value := learner.megatron_args.get(name):
            raise ConfigError(
                f"{megatron_args.KEY}.{name} = {show(value)} leaves rollout.routing_replay = true no effect"
            )
