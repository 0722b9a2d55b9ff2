"""Which kinds of engines there are: the table of ours, and the one that a configuration names."""

from __future__ import annotations

from miles_async.config.effect import Rule, rules_of
from miles_async.config.schema import Engine
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
    """The kind that an ``[engine]`` names. Raises HookError."""
    return KINDS.load(engine.kind)()


def effects() -> list[Rule]:
    """Which keys only one kind looks at."""
    return rules_of("engine.kind", {name: kind.KEYS for name, kind in KINDS.all_ours().items()})
