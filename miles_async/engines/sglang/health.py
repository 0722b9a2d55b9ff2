"""What state a server is in, from what can be seen of it: *starting*, *serving*, *paused*, *hung*, *dead*.

Promises: pure, one look (``observer.py`` takes them) after the other; a server that takes weights, or is paused for them, is
not called hung before ``hang_s`` seconds without a sign of life have passed; one that nobody listens for any more is dead at
once. A server that takes messages and generates nothing cannot be told from a paused one, and is called that.

    starting ──generates──► serving ◄──► paused        any ──no sign of life for hang_s──► hung ──a sign──► serving | paused
                                                       any ──its process or its listener is gone──► dead

How SGLang looks from outside: its HTTP process answers ``/model_info`` and ``/ready`` by itself; its scheduler has to answer
for ``/server_info``, also while it is paused, and stands still in a collective; ``/health`` generates a token, so that a paused
server blocks for 20 s there and says 503.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "serving", "paused", "hung", "dead"]


@dataclass(frozen=True)
class Look:
    """What one look saw. ``at``: seconds, of a clock that never goes back."""

    at: float
    process: bool | None = None  # whether its process runs; None: it is not ours to know
    refused: bool = False  # nobody listens at its address
    http: bool = False  # its HTTP side answered /model_info
    ready: bool = False  # /ready was 200: it is not paused, as far as it knows
    scheduler: bool = False  # /server_info was answered: its scheduler takes messages
    generates: bool = False  # /health was 200, or what it generates grew since the look before


@dataclass(frozen=True)
class Health:
    """The state after a look. ``sign_at``: of the last sign of life; ``served``: whether it has ever generated."""

    state: State
    reason: str
    sign_at: float
    served: bool = False


def judge(before: Health | None, look: Look, hang_s: float) -> Health:
    """The state after ``look``; ``before`` is None for a server that nobody has looked at yet. Pure."""
    generates = look.ready and look.generates
    served = generates or (before is not None and before.served)
    # one that takes messages lives; one that is not paused has to generate, too
    sign = generates or (look.http and not served) or (look.scheduler and not look.ready)
    sign_at = look.at if sign or before is None else before.sign_at
    silent = look.at - sign_at

    def found(state: State, reason: str) -> Health:
        return Health(state, reason, sign_at, served)

    if look.process is False:
        return found("dead", "its process has ended")
    if look.refused and (served or silent >= hang_s):
        return found("dead", "nobody listens at its address")
    if generates:
        return found("serving", "it generates")
    if silent >= hang_s:
        return found("hung", f"{_missing(look)} for {silent:.0f} s")
    if not served:
        return found("starting", "nobody listens yet" if look.refused else "it has not generated a token yet")
    if look.http and not look.ready:
        return found(
            "paused", "it takes messages" if look.scheduler else "its scheduler is busy, as in a weight update"
        )
    return found("paused" if before is not None and before.state == "paused" else "serving", _missing(look))


def _missing(look: Look) -> str:
    if not look.http:
        return "its HTTP side has not answered"
    return "it has generated nothing" if look.scheduler else "its scheduler has not answered"
