"""Rotary frequencies of models whose context was made longer than the one that they were first trained with.

Promises: those of transformers (modeling_rope_utils.py), for the learner and the embedded engine alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def longer(
    frequencies: torch.Tensor, kind: str, factor: float, *, low: float = 1.0, high: float = 4.0, original: int = 8192
) -> torch.Tensor:
    """``frequencies``, float32 angles a position, as ``rope_type`` = kind has them: "linear" divides all by ``factor``,
    "llama3" those whose wavelength is above ``original / low`` positions, leaves those below ``original / high`` and goes from
    the one to the other between them; any other kind leaves them."""
    if kind == "linear":
        return frequencies / factor
    if kind != "llama3":
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / factor, blended)
    return torch.where(wavelengths < original / high, frequencies, scaled)


def as_said(frequencies: torch.Tensor, said: Mapping[str, Any]) -> torch.Tensor:
    """:func:`longer` as a config.json says it (``hf_config.rope``)."""
    return longer(
        frequencies,
        said.get("rope_type") or said.get("type") or "default",
        float(said.get("factor", 1.0)),
        low=float(said.get("low_freq_factor", 1.0)),
        high=float(said.get("high_freq_factor", 4.0)),
        original=int(said.get("original_max_position_embeddings", 8192)),
    )
