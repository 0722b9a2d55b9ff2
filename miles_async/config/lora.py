"""LoRA of the learner, as the keys of [learner] say it: how large the adapters are, and beside which matrices. Pure, without
torch.

Promises: what could not be meant (no matrix, one twice) is refused with the key; equal adapters compare equal, so that a
checkpoint can say which it holds.
"""

from __future__ import annotations

import msgspec

from miles_async.config.schema import ConfigError, Learner, RunConfig

# Megatron's names of the matrices, and the part of a layer that each belongs to
ATTENTION, MLP = "self_attention", "mlp"
USUAL = {
    "linear_qkv": ATTENTION,
    "linear_proj": ATTENTION,
    "linear_fc1": MLP,
    "linear_fc2": MLP,
}  # what None stands for
# of latent attention (MLA), which has linear_proj besides: queries by way of a latent vector, or without one
LATENT_QUERIES, DIRECT_QUERIES = ("linear_q_down_proj", "linear_q_up_proj"), ("linear_q_proj",)
LATENT_KEYS = ("linear_kv_down_proj", "linear_kv_up_proj")
TARGETS = {**USUAL, **dict.fromkeys((*DIRECT_QUERIES, *LATENT_QUERIES, *LATENT_KEYS), ATTENTION)}

ALL_LINEAR = "all-linear"  # PEFT's word for every matrix but the output layer's


class Lora(msgspec.Struct, frozen=True):
    """Beside each of the ``targets`` of every layer ``alpha / rank * B A``, A of ``rank`` rows."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # in the order of TARGETS; with "fsdp" of transformers' names, sorted, or ALL_LINEAR

    def __str__(self) -> str:
        return f"lora_rank = {self.rank}, lora_alpha = {self.alpha:g}, lora_targets = {', '.join(self.targets)}"


def lora_of(learner: Learner) -> Lora | None:
    """What the keys of [learner] say; None: all weights are trained."""
    if not learner.lora_rank:
        return None
    wanted = learner.lora_targets
    if learner.train_backend == "fsdp":
        targets = (ALL_LINEAR,) if wanted is None else tuple(sorted(wanted))
    else:
        targets = tuple(name for name in TARGETS if name in (USUAL if wanted is None else wanted))
    return Lora(learner.lora_rank, learner.lora_alpha, targets)


def described(lora: Lora | None) -> str:
    """For a message."""
    return str(lora) if lora else "no adapters (lora_rank = 0)"


def check(config: RunConfig) -> None:
    """Refuse adapters that nobody could have meant. Raises ConfigError."""
    learner, targets = config.learner, config.learner.lora_targets
    if targets is not None:
        of_fsdp = learner.train_backend == "fsdp"  # which looks for them in the model
        odd = [] if of_fsdp else [name for name in targets if name not in TARGETS]
        if not targets or len(set(targets)) < len(targets) or odd:
            names = "the linear layers of transformers' model, as q_proj" if of_fsdp else ", ".join(TARGETS)
            raise ConfigError(f"learner.lora_targets = {targets!r} must name one or more of {names}, each once")
    if learner.lora_rank and config.model.model_provider:
        raise ConfigError(
            f"learner.lora_rank = {learner.lora_rank} needs the layers of the built-in bridge: model.model_provider, a bridge "
            "of yours, builds its own"
        )
