"""What one step of the engine gives to those who asked."""

from __future__ import annotations

from typing import NamedTuple

from miles_async.engines.embedded.request import EngineRequest


class Partial(NamedTuple):
    """Output so far of a request that streams."""

    request: EngineRequest
    output: list[int]
    logprobs: list[float]


class StepOutput(NamedTuple):
    """What a step gave: requests that are finished, and progress of streaming ones."""

    finished: list[EngineRequest]
    partial: list[Partial]
