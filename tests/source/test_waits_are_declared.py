"""Every wait of an actor tells what the sentence of its kind has places for, and every kind is waited for by somebody."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from bus.waits import WaitKind

ROOT = Path(__file__).parents[2]
WAITING = (ROOT / "actors", ROOT / "miles_async" / "engines" / "kinds")  # the latter wait as the host of an engine
OF_NO_ACTOR_OF_OURS = {WaitKind.REDIS, WaitKind.OTHER}


def waits() -> Iterator[tuple[str, WaitKind, set[str | None]]]:
    """Where a wait begins, its kind, and what it tells beside whom it is for."""
    for path in sorted(path for place in WAITING for path in place.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in ("waiting", "wait_for"):
                for node in ast.walk(call.args[0]):
                    if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "WaitKind":
                        told = {keyword.arg for keyword in call.keywords} - {"targets", "since"}
                        yield f"{path.name}:{call.lineno}", WaitKind[node.attr], told


def test_every_wait_tells_what_its_sentence_says() -> None:
    found = list(waits())
    assert len(found) > 20
    assert [(where, kind) for where, kind, told in found if told != kind.fields] == []


def test_every_kind_is_waited_for() -> None:
    of_redis = {WaitKind.ROOM}  # the context says it of every actor whose command found no room
    assert {kind for _, kind, _ in waits()} | of_redis | OF_NO_ACTOR_OF_OURS == set(WaitKind)
