"""Which kinds of engines there are: the table of ours, and the one that a configuration names."""

from __future__ import annotations

from typing import Any

from miles_async.config.effect import Rule, rules_of
from miles_async.config.schema import ConfigError, Engine, RunConfig
from miles_async.engines.kinds.base import EngineKind
from miles_async.hooks.calls import refused
from miles_async.hooks.choice import Choice

KINDS = Choice(
    "engine.kind",
    EngineKind,
    (),
    {
        "embedded": "miles_async.engines.kinds.embedded.Embedded",
        "sglang": "miles_async.engines.kinds.sglang.Sglang",
        "external": "miles_async.engines.kinds.external.External",
    },
    needs=("host",),
)


def kind_of(engine: Engine) -> EngineKind:
    """The kind that an ``[engine]`` names. Raises HookError, HookFailed."""
    return KINDS.called(engine.kind, KINDS.load(engine.kind))


def number_of(engine: Engine) -> int:
    """How many an ``[engine]`` asks for. Raises HookError, HookFailed."""
    kind = kind_of(engine)
    if engine.kind in KINDS.ours:
        return kind.number(engine)
    found: object = KINDS.called(engine.kind, kind.number, engine)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise refused(KINDS.hook, kind.number, found, "how many engines there are, a whole number of at least 1")
    return found


def addresses_of(engine: Engine) -> list[str]:
    """Where those of an ``[engine]`` are; empty: on this machine. Raises HookError, HookFailed."""
    kind = kind_of(engine)
    if engine.kind in KINDS.ours:
        return kind.addresses(engine)
    found: Any = KINDS.called(engine.kind, kind.addresses, engine)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise refused(KINDS.hook, kind.addresses, found, "a list of URLs, empty where each engine announces its own")
    return found


def check(config: RunConfig) -> None:
    """Refuse an ``[engine]`` that its kind cannot work with. Raises ConfigError."""
    KINDS.called(config.engine.kind, kind_of(config.engine).check, config)
    number_of(config.engine)
    addresses_of(config.engine)


def check_use(config: RunConfig) -> None:
    """Refuse what the run asks of its kind of engine in vain. Raises ConfigError."""
    KINDS.called(config.engine.kind, kind_of(config.engine).check_use, config)
    if config.placement.elastic.max_engines is not None and (fixed := kind_of(config.engine).FIXED) is not None:
        raise ConfigError(f"placement.elastic.max_engines = {config.placement.elastic.max_engines}: {fixed}")


def effects() -> list[Rule]:
    """Which keys only one kind looks at."""
    return rules_of("engine.kind", {name: kind.KEYS for name, kind in KINDS.all_ours().items()})
