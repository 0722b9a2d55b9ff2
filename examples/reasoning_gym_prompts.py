"""Prompts and reward from reasoning-gym (``pip install reasoning-gym``): the data of ``reasoning_gym.toml``.

    python examples/reasoning_gym_prompts.py            # writes runs/reasoning_gym.jsonl
    miles-async launch examples/reasoning_gym.toml

Promises: the same arguments write the same rows, tasks interleaved; the reward is the task's own scorer, found by the
``source_dataset`` that each row keeps. The run finds ``score`` because this file lies beside the TOML file.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

# here and not in score(): the import takes seconds, and each call has a deadline while the start has a long one
import reasoning_gym
from reasoning_gym.utils import extract_answer

if TYPE_CHECKING:
    from miles_async.rewards import RewardSample

TASKS = ("chain_sum", "gcd", "letter_counting", "spell_backward", "word_sorting", "simple_equations")


def score(sample: RewardSample) -> float:
    """The task's own score, in [0, 1], of what the response puts in <answer> tags, or of the whole response."""
    answer = extract_answer(sample.response)
    entry = {"question": sample.prompt, "answer": sample.label, "metadata": sample.metadata}
    return _scorer(sample.metadata["source_dataset"])(sample.response.strip() if answer is None else answer, entry)


@cache
def _scorer(task: str) -> Any:
    return reasoning_gym.get_score_answer_fn(task)


def rows(tasks: list[str], size: int, seed: int) -> list[dict[str, Any]]:
    """``size`` rows of each task, interleaved: question, answer, and what the scorer needs."""
    sets = [reasoning_gym.create_dataset(task, size=size, seed=seed) for task in tasks]
    return [
        {"input": entry["question"] + "\n", "label": entry["answer"], "metadata": entry["metadata"]}
        for entries in zip(*sets, strict=True)
        for entry in entries
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write reasoning-gym prompts as JSONL.")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=f"default: {' '.join(TASKS)}")
    parser.add_argument("--size", type=int, default=500, help="prompts of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "runs" / "reasoning_gym.jsonl")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    written = rows(args.tasks, args.size, args.seed)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    print(f"{len(written)} prompts of {len(args.tasks)} tasks in {args.out}")


if __name__ == "__main__":
    main()
