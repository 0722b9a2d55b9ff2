"""The streams of a run and what may lie on each.

``tickets`` dealer to rollout workers (consumer group); ``samples`` workers to learner; ``batches`` news of batches and of
drops, to all who wait for either (the write-ahead log itself is a hash); ``weights`` learner, engines and broadcaster;
``control`` supervisor to all, and what is asked of it with its answers; ``events`` and ``metrics`` all to the monitor;
``dead`` groups that were given up, to the monitor.
"""

from __future__ import annotations

from typing import Literal

from bus.messages import (
    Batch,
    Control,
    DeadLetter,
    EngineDown,
    EngineServes,
    EngineUp,
    Event,
    Message,
    Metrics,
    ReadyGroup,
    Scale,
    Scaled,
    Snapshot,
    Ticket,
    Transition,
)

Topic = Literal["tickets", "samples", "batches", "weights", "control", "events", "metrics", "dead"]

# a reader that wants only some of it passes over the rest; what is none of these is refused
KINDS: dict[Topic, tuple[type[Message], ...]] = {
    "tickets": (Ticket,),
    "samples": (ReadyGroup,),
    "batches": (Batch, Transition),
    "weights": (Snapshot, EngineUp, EngineServes, EngineDown),
    "control": (Control, Scale, Scaled),
    "events": (Event, Transition),
    "metrics": (Metrics,),
    "dead": (DeadLetter,),
}
