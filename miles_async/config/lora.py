"""LoRA of the learner, as the keys of [learner] say it: how large the adapters are, and beside which matrices. Pure, without
torch.

Promises: what could not be meant (no matrix, one twice) is refused with the key; equal adapters compare equal, so that a
checkpoint can say which it holds.
"""

from __future__ import annotations

import msgspec

from miles_async.config.schema import ConfigError, Learner, RunConfig

# Megatron's names of the matrices, and the part of a layer that each belongs to
TARGETS = {
    "linear_qkv": "self_attention",
    "linear_proj": "self_attention",
    "linear_fc1": "mlp",
    "linear_fc2": "mlp",
}


class Lora(msgspec.Struct, frozen=True):
    """Beside each of the ``targets`` of every layer ``alpha / rank * B A``, A of ``rank`` rows."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # in the order of TARGETS

    def __str__(self) -> str:
        return f"lora_rank = {self.rank}, lora_alpha = {self.alpha:g}, lora_targets = {', '.join(self.targets)}"


def lora_of(learner: Learner) -> Lora | None:
    """What the keys of [learner] say; None: all weights are trained."""
    if not learner.lora_rank:
        return None
    wanted = learner.lora_targets
    return Lora(
        learner.lora_rank, learner.lora_alpha, tuple(name for name in TARGETS if wanted is None or name in wanted)
    )


def described(lora: Lora | None) -> str:
    """For a message."""
    return str(lora) if lora else "no adapters (lora_rank = 0)"


def check(config: RunConfig) -> None:
    """Refuse adapters that nobody could have meant. Raises ConfigError."""
    learner, targets = config.learner, config.learner.lora_targets
    if targets is not None and (not targets or len(set(targets)) < len(targets)):
        raise ConfigError(
            f"learner.lora_targets = {targets!r} must name one or more of {', '.join(TARGETS)}, each once"
        )
    if learner.lora_rank and config.model.model_provider:
        raise ConfigError(
            f"learner.lora_rank = {learner.lora_rank} needs the layers of the built-in bridge: model.model_provider, a bridge "
            "of yours, builds its own"
        )
