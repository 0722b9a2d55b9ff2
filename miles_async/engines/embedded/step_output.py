"""What one step of the engine gives to those who asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from miles_async.engines.embedded.request import EngineRequest


class Partial(NamedTuple):
    """Output so far of a request that streams."""

    request: EngineRequest
    output: list[int]
    logprobs: list[float]


class StepOutput(NamedTuple):
    """What a step gave: requests that are finished, progress of streaming ones, and those whose first token it sampled."""

    finished: list[EngineRequest]
    partial: list[Partial]
    begun: Sequence[EngineRequest] = ()
