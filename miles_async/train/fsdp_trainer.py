"""``learner.train_backend = "fsdp"``."""

from __future__ import annotations

from miles_async.train.fsdp.parts import FsdpParts
from miles_async.train.trainer import Trainer


class FsdpTrainer(Trainer):
    """With transformers' model of any dense architecture, sharded over all ranks."""

    PARTS = FsdpParts
