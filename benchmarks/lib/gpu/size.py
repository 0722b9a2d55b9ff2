"""How large what ``gpu-check`` runs is: in minutes on a GPU, or in seconds on a CPU, where only its code is tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miles_async.models import builtin

CONTEXT = 8192


@dataclass(frozen=True)
class Size:
    """``hidden``, ``layers``: of a Qwen3 whose numbers are compared; ``large_*``: of one that is pushed and timed."""

    hidden: int
    layers: int
    large_hidden: int
    large_layers: int
    groups: int  # of 8 responses, in a batch whose speed counts
    compared: int  # in one that a CPU computes, too
    median: int  # tokens of a response, of which the longest has eight times as many
    steps: int
    new_tokens: int  # of each of the engine's answers
    answers: int

    @property
    def longest(self) -> int:
        return 8 * self.median

    def write(self, root: Path) -> tuple[Path, Path]:
        """Where both models are, random weights in float32."""
        for name, hidden, layers in (
            ("small", self.hidden, self.layers),
            ("large", self.large_hidden, self.large_layers),
        ):
            if not (root / name / "config.json").exists():
                builtin.write_model(_qwen3(hidden, layers), root / name, 1)
        return root / "small", root / "large"


def _qwen3(hidden: int, layers: int) -> builtin.Architecture:
    size = 64 if hidden < 1024 else 128  # of a head
    heads, vocab = hidden // size, builtin.padded((builtin.PAD, builtin.EOS), 1024)
    return builtin.Architecture(
        vocab, hidden, 3 * hidden, layers, heads, max(1, heads // 2), size, 1e6, 0.02, CONTEXT, ""
    )


# the large one has 0.5e9 weights: 1 GB in bfloat16
SIZES = {"cuda": Size(512, 8, 2048, 10, 32, 4, 500, 5, 256, 64), "cpu": Size(128, 2, 128, 2, 2, 2, 8, 2, 8, 2)}
