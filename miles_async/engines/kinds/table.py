"""Which kinds of engines there are: the table of ours, and the one that a configuration names."""

from __future__ import annotations

from miles_async.config.effect import Rule, rules_of
from miles_async.config.schema import Engine, RunConfig
from miles_async.engines.kinds.base import EngineKind
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
)


def kind_of(engine: Engine) -> EngineKind:
    """The kind that an ``[engine]`` names. Raises HookError, HookFailed."""
    return KINDS.called(engine.kind, KINDS.load(engine.kind))


def check(config: RunConfig) -> None:
    """Refuse an ``[engine]`` that its kind cannot work with. Raises ConfigError."""
    KINDS.called(config.engine.kind, kind_of(config.engine).check, config)


def check_use(config: RunConfig) -> None:
    """Refuse what the run asks of its kind of engine in vain. Raises ConfigError."""
    KINDS.called(config.engine.kind, kind_of(config.engine).check_use, config)


def effects() -> list[Rule]:
    """Which keys only one kind looks at."""
    return rules_of("engine.kind", {name: kind.KEYS for name, kind in KINDS.all_ours().items()})
