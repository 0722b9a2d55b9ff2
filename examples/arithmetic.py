"""Sums of integers and fractions, for math-verify to judge, and a reward of one's own beside it: ``arithmetic.toml``.

    python examples/arithmetic.py                       # writes runs/arithmetic.jsonl
    miles-async launch examples/arithmetic.toml

Promises: the same arguments write the same rows. Every fourth row asks for a decimal number and is graded by its own
``rm_type``, which its metadata name.
"""

from __future__ import annotations

import argparse
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miles_async.rewards import RewardSample

ROOM = 12  # characters that an answer may have


def brief(sample: RewardSample) -> float:
    """1 for a response of up to ROOM characters that ended by itself, falling to 0 at twice that many; 0 if cut off."""
    if sample.finish_reason != "stop":
        return 0.0
    return min(1.0, max(0.0, 2 - len(sample.response) / ROOM))


def rows(size: int, seed: int) -> list[dict[str, Any]]:
    """``size`` rows: the question, the answer, and for every fourth the reward that grades it instead."""
    chance = random.Random(seed)
    written: list[dict[str, Any]] = []
    for number in range(size):
        if number % 4 == 3:
            tenths = chance.randint(1, 99)
            question, answer = f"{tenths / 10} + 0.1 =", f"{(tenths + 1) / 10}"
            written.append({"input": question, "label": answer, "metadata": {"rm_type": "exact_match"}})
            continue
        one, other = (Fraction(chance.randint(1, 9), chance.choice((1, 1, 2, 4))) for _ in range(2))
        written.append({"input": f"{one} + {other} =", "label": str(one + other), "metadata": {}})
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Write sums as JSONL.")
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "runs" / "arithmetic.jsonl")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows(args.size, args.seed)), encoding="utf-8")
    print(f"{args.size} prompts in {args.out}")


if __name__ == "__main__":
    main()
