"""How sequences lie in a pass through Megatron's own layers, as ``learner.qkv_format`` says it. Pure, without torch."""

from __future__ import annotations

from miles_async.config.schema import ConfigError, Learner


def packs(learner: Learner) -> bool:
    """Whether they lie one after the other ("thd"), where the model's attention can take them so."""
    return learner.qkv_format == "thd" or (learner.qkv_format is None and not learner.moe_aux_loss_coeff)


def check(learner: Learner) -> None:
    """Refuse one row where sequences have to be told apart behind the attention. Raises ConfigError."""
    if learner.qkv_format == "thd" and learner.moe_aux_loss_coeff:
        raise ConfigError(
            f'learner.qkv_format = "thd" with learner.moe_aux_loss_coeff = {learner.moe_aux_loss_coeff:g}: the balance of each '
            'sequence is counted in rows of sequences, "bshd"'
        )
