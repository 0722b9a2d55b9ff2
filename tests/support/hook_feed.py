"""What a hook's row is made of: how the system calls the hook's function, and what a failure of that costs.

``feed(path, directory)`` has the function at ``path`` called by the code that calls it in a run, and gives (what it costs, the
line that is said); ("", "") where all is well. Costs: "run", it ends at once (the error is one that no restart follows);
"attempt", of a group; "line", nothing else; "point", of an evaluation; "answer", what a tool's caller is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.runtime.context import FATAL
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import ReadyGroup, Sample, Ticket
from bus.waits import WaitKind
from miles_async.config.schema import Data, Model, RunConfig
from miles_async.rollout.failures import cause_of

Outcome = tuple[str, str]
Feed = Callable[[str, Path], Outcome]
FINE: Outcome = ("", "")
TICKET = Ticket(group_id="0-7-0", prompt_tokens=pack([5, 6], TOKENS), sampling_seed=40, prompt="p", label="l")
SAMPLE = Sample(
    index=0,
    tokens=pack([1, 2], TOKENS),
    logprobs=pack([0, 0], LOGPROBS),
    loss_mask=pack([1, 1], MASK),
    versions=pack([0, 0], VERSIONS),
    reward=0.5,
    finish_reason="stop",
    reward_parts={"own": 0.5},
)
READY = [
    ReadyGroup(
        group_id=f"0-{i}-0",
        payload_key=str(i),
        oldest_version=3 + i,
        newest_version=3 + i,
        n_tokens=1,
        published=0.0,
        versions=((3 + i, 1),),
    )
    for i in range(3)
]


@dataclass(frozen=True)
class Row:
    """One hook. takes: names of the wrong values (test_hook_table.py) that it may give after all. more: expressions of its own
    that it may not give. good: what it gives while ``when`` holds, before it goes wrong. said: what the line has instead of the
    key. lets_by: what goes through as it is. head: imports and classes that ``more`` needs."""

    costs: str
    feed: Feed
    takes: frozenset[str] = frozenset()
    more: dict[str, str] = field(default_factory=dict)
    when: str = ""
    good: str = ""
    said: str = ""
    lets_by: tuple[type[BaseException], ...] = ()
    head: str = ""


def config(**sections: Any) -> RunConfig:
    return RunConfig(**{"model": Model(hf_checkpoint="x"), "data": Data(prompt_data="x"), **sections})


def ends_the_run(call: Callable[[], Any]) -> Outcome:
    try:
        call()
    except FATAL as error:
        return "run", str(error)
    return FINE


def of_attempt(call: Callable[[], Any]) -> Outcome:
    try:
        call()
    except Exception as error:
        return "attempt", ": ".join(cause_of(error))
    return FINE


class Ctx:
    """What of an actor's context is used where a function is called."""

    def __init__(self, found: RunConfig) -> None:
        self.config = found
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.log = SimpleNamespace(exception=lambda *_: None, warning=lambda *_: None)

    @contextlib.contextmanager
    def waiting(self, kind: WaitKind) -> Any:
        yield SimpleNamespace(begin_again=lambda: None)

    async def event(self, kind: str, **data: Any) -> None:
        self.events.append((kind, data))

    async def metrics(self, step: int, values: dict[str, float]) -> None: ...
