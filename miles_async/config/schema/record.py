"""What a run keeps of the groups that it generates, and the run whose batches are trained again."""

from __future__ import annotations

from typing import Literal

from miles_async.config.schema.section import CountInt, PositiveFloat, Section


class Record(Section, frozen=True):
    # the groups that are kept whole under record/ of the run directory: those that were published ("published"), also those
    # that a filter refused ("all"), or none ("off"); without them a run cannot be replayed
    level: Literal["published", "all", "off"] = "published"
    # of them on disk, compressed; beyond it the oldest leave, and with them what a replay from the beginning needs
    max_gb: PositiveFloat = 20.0
    # also the learner's own log-prob of each token that a step trained, as that step had it: 4 bytes a token, within max_gb;
    # `inspect RUN sample` and the page show it beside the engine's
    learner_log_probs: bool = False


class Replay(Section, frozen=True):
    run: str | None = None  # the directory of a recorded run: its batches are trained again, and nothing is generated
    # begin behind this step, with that run's checkpoint of it; 0: with the weights of its beginning
    from_step: CountInt = 0
