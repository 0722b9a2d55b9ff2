"""What the groups of a run are held against, before publication and before training: the same on both sides."""

from __future__ import annotations

from pathlib import Path

from miles_async.config.schema import RunConfig
from miles_async.groups.model_routes import routes_of_model
from miles_async.groups.sound import Limits
from miles_async.models.context_length import model_length
from miles_async.text.tokenizer_files import model_vocab, read_json


def group_limits(config: RunConfig, directory: str | Path) -> Limits:
    """directory: where the model's files are.

    The context is the model's own, not a smaller one of ``engine.context_length``: that may be another one when a recorded
    batch is trained again, and what is in it must not depend on that.
    """
    return Limits(
        vocab_size=model_vocab(read_json(Path(directory) / "config.json")),
        context=model_length(directory),
        taught=config.algorithm.use_opd,
        teacher_top_k=config.algorithm.opd_log_prob_top_k,
        routes=routes_of_model(directory) if config.rollout.routing_replay else None,
    )
