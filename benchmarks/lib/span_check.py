"""Whether every token was sampled by the version that it names: its log-prob, computed again with that version's weights.

Promises: the weights are those that the run kept (``keeping_learner.py``), the model is Hugging Face transformers' in float32,
one thread; no token is left out. As a control, the same is done with the version before (the one after, for version 0), which
has to disagree, or the comparison would say nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from bus.codec import LOGPROBS, TOKENS, VERSIONS, unpack
from bus.messages import Group

TOLERANCE = 1e-4
OTHER = 1e-3  # a token whose log-prob differs by more than this between two versions tells them apart


@dataclass
class SpanReport:
    """``worst``: largest |engine's log-prob - recomputed|. ``told_apart``: tokens for which the neighbouring version's is
    further off than ``OTHER``. ``by_spans``: samples by the number of versions they have."""

    tokens: int = 0
    wrong: int = 0  # further off than TOLERANCE
    worst: float = 0.0
    told_apart: int = 0
    by_spans: Counter[int] = field(default_factory=Counter)
    versions: set[int] = field(default_factory=set)


def check_spans(groups: Iterable[Group], kept: Path, temperature: float = 1.0) -> SpanReport:
    """Recompute every token of every sample. Raises OSError where a version was not kept."""
    report = SpanReport()
    torch.set_num_threads(1)
    disable_progress_bar()
    for group in groups:
        for sample in group.samples:
            prompt = unpack(sample.prompt_tokens or group.prompt_tokens, TOKENS).tolist()
            tokens, versions = unpack(sample.tokens, TOKENS).tolist(), unpack(sample.versions, VERSIONS)
            reported = unpack(sample.logprobs, LOGPROBS)
            for version in sorted(set(versions.tolist())):
                own = versions == version
                off = np.abs(reported - _log_probs(kept / str(version), prompt, tokens, temperature))[own]
                near = version - 1 if version else 1
                control = np.abs(reported - _log_probs(kept / str(near), prompt, tokens, temperature))[own]
                report.tokens += int(own.sum())
                report.wrong += int((off > TOLERANCE).sum())
                report.worst = max(report.worst, float(off.max()))
                report.told_apart += int((control > OTHER).sum())
                report.versions.add(int(version))
            report.by_spans[len(set(versions.tolist()))] += 1
    return report


@torch.inference_mode()
def _log_probs(path: Path, prompt: list[int], tokens: list[int], temperature: float) -> Any:
    ids = torch.tensor([prompt + tokens])
    logits = _model(path)(ids).logits[0, len(prompt) - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].numpy()


@lru_cache(maxsize=6)
def _model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
