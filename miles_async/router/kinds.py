"""Which kinds of routers there are (``router.kind``): a table of what has to be known of each, and the checks that follow."""

from __future__ import annotations

from typing import NamedTuple

from miles_async.config.schema import ConfigError, Router, RunConfig


class RouterKind(NamedTuple):
    """One kind. actor: the class of its actor. takes_batches: a request may hold several prompts. tells_load: it says how busy
    the engines are. two_keys: who may generate may not add engines. takes_args: ``router.args`` are flags of its program.
    passes_all: what it does not know of a request reaches the engine. aborts: a request can be ended by its id."""

    actor: str
    takes_batches: bool = False
    tells_load: bool = False
    two_keys: bool = False
    takes_args: bool = False
    passes_all: bool = False
    aborts: bool = False


KINDS = {
    "builtin": RouterKind(
        "actors.router.Router", takes_batches=True, tells_load=True, two_keys=True, passes_all=True, aborts=True
    ),
    "sglang": RouterKind("actors.sglang_router.SglangRouter", takes_args=True),
}


def kind_of(router: Router) -> RouterKind:
    """The kind that a ``[router]`` names."""
    return KINDS[router.kind]


def check(config: RunConfig) -> None:
    """Refuse what the kind would ignore, and what would look like a protection and be none. Raises ConfigError."""
    router, kind = config.router, kind_of(config.router)
    if router.args and not kind.takes_args:
        raise ConfigError(f'router.args = {router.args} are flags of router.kind = "sglang"')
    if not kind.two_keys and (router.admin_key is not None or router.allowed_engines):
        key = "admin_key" if router.admin_key is not None else "allowed_engines"
        raise ConfigError(
            f'router.{key} needs router.kind = "builtin": sglang-router has one key for everything, and whoever may '
            "generate may add engines there"
        )
    if config.rollout.adaptive_in_flight and not kind.tells_load:
        raise ConfigError(
            f'rollout.adaptive_in_flight = true needs router.kind = "builtin": "{router.kind}" does not say how busy '
            "the engines are"
        )
    if config.rollout.routing_replay and not kind.passes_all:
        raise ConfigError(
            f'rollout.routing_replay = true needs router.kind = "builtin": "{router.kind}" leaves out of a request that its '
            "experts are asked for (return_routed_experts)"
        )
