"""A run whose engines and learner take the time that a benchmark says: its configuration, and its model, the smallest there is.

What is measured is the loop around them: dealer, ledger, workers, router, broadcaster, the learner with its bus.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miles_async.config.words import toml
from miles_async.models import builtin

WORKERS = 2
LONGEST = 1900  # tokens of a response: with a prompt, what the model's context holds
# what weights cost by their size is the matter of ``bench weights``
MODEL = dataclasses.replace(builtin.MODELS["builtin:digits"], max_position=2048)
PLACE = "MODEL"  # of the model's directory, until there is one
SECTIONS: dict[str, dict[str, Any]] = {
    "run": {"num_steps": 1, "seed": 0},
    "model": {"hf_checkpoint": PLACE, "parity_check": False, "device": "cpu"},
    "data": {"prompt_data": "builtin:repeat"},
    "rollout": {"rollout_max_response_len": LONGEST, "num_workers": WORKERS},
    "algorithm": {"correction": "behaviour"},
    "engine": {"num_engines": 2},
    "weights": {"transport": "disk"},
    "checkpoint": {"save_interval": 100_000, "save_hf": False},
    "monitor": {"live": "off"},
}


def config(batch_size: int, slots: int, learner: str, engine: str, **more: Mapping[str, Any]) -> str:
    """The TOML. slots: groups that all workers make at a time; learner, engine: dotted paths; more: keys by their sections."""
    own = {
        "rollout": {"rollout_batch_size": batch_size, "max_groups_in_flight": slots // WORKERS},
        "learner": {"train_backend": learner},
        "engine": {"kind": engine},
    }
    lines: list[str] = []
    for name in SECTIONS | own | more:
        section = {**SECTIONS.get(name, {}), **own.get(name, {}), **more.get(name, {})}
        lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def write(directory: Path, text: str) -> Path:
    """``run.toml`` in ``directory``, of the TOML that :func:`config` gave, and its model beside it."""
    model, path = directory / "model", directory / "run.toml"
    builtin.write_model(MODEL, model, seed=1)
    path.write_text(text.replace(PLACE, str(model)))
    return path
