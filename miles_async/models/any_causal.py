"""Which models a learner can train that has transformers compute them, told from ``config.json``.

Promises: a mixture of experts is refused, since transformers keeps its weights under other names than its checkpoints have and
engines want; what transformers has no causal language model of is refused, too. transformers is imported only for a model
that support.py does not know.
"""

from __future__ import annotations

from typing import Any

from miles_async.models.support import ARCHITECTURES


class AnyCausal:
    """A ``ModelJudge`` (support.py)."""

    name = "the learner"

    def problems(self, raw: dict[str, Any]) -> list[str]:
        """Why transformers' model cannot be trained; empty: it can."""
        found = []
        kind = raw.get("model_type")
        if kind not in ARCHITECTURES and kind not in _known():
            return [f"model_type {kind!r} (supported: what transformers has a causal language model of)"]
        if not isinstance(raw.get("vocab_size"), int):
            found.append("config.json has no vocab_size of its own (supported: models of text)")
        experts = [name for name, count in raw.items() if "expert" in name and type(count) is int and count > 1]
        if experts:
            shown = f"{experts[0]} = {raw[experts[0]]}"
            found.append(f'{shown}, a mixture of experts (supported: dense models; learner.train_backend = "megatron")')
        if raw.get("is_encoder_decoder"):
            found.append("is_encoder_decoder = true (supported: decoders)")
        if raw.get("quantization_config"):
            found.append("quantization_config: its weights are quantized")
        return found


def _known() -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


ANY_CAUSAL = AnyCausal()
