"""Whether the learner's model computes what transformers computes, measured: log-probs of the same tokens, side by side.

Promises: both have the checkpoint's own weights, in float32 on the CPU; of a model that does not fit, both have the first
layers only, which the result says.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miles_async.models.support import read_config_json
from miles_async.train.batch import micro_batches, whole_sequences
from miles_async.train.bridge import ModelBridge
from miles_async.train.logprobs import token_logprobs
from miles_async.train.lone_model import lone_model
from miles_async.train.packed import packed

BOUND = 1e-3  # of two log-probs; right ones differ by a few 1e-6 in a small model, wrong ones by tenths
ROWS, COLUMNS = 4, 48
MOST_BYTES = 4 * 1024**3  # of weights on disk that are looked at


@dataclass(frozen=True)
class Parity:
    """What came out. difference: the largest of any token's log-probs; layers: of how many of ``all_layers``."""

    architecture: str
    difference: float
    tokens: int
    layers: int
    all_layers: int

    @property
    def same(self) -> bool:
        return self.difference <= BOUND


def compare(path: Path, make: Callable[..., Any] = ModelBridge) -> Parity:
    """The model in the directory ``path`` as the learner has it (``make``: its bridge) beside transformers'.

    Raises what ``make`` does for a model that it does not know. A difference that is not a number is infinite.
    """
    raw = read_config_json(path)
    columns = max(2, min(COLUMNS, raw.get("max_position_embeddings") or COLUMNS))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, raw["vocab_size"], (ROWS, columns)))
    with first_layers(path, raw) as (directory, layers):
        ours, theirs = _of_learner(directory, make, tokens), _of_transformers(directory, tokens)
    difference = float((ours - theirs).abs().max())
    return Parity(
        architecture=next(iter(raw.get("architectures") or [raw["model_type"]])),
        difference=difference if np.isfinite(difference) else float("inf"),
        tokens=ours.numel(),
        layers=layers,
        all_layers=raw["num_hidden_layers"],
    )


@contextlib.contextmanager
def first_layers(path: Path, raw: dict[str, Any], most: int = MOST_BYTES) -> Iterator[tuple[Path, int]]:
    """A directory that transformers loads, of as many layers as ``most`` bytes hold (two at least), and their number."""
    layers = raw["num_hidden_layers"]
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    least = raw.get("first_k_dense_replace", 1) + 1  # one with experts, of a mixture
    kept = min(layers, max(2, least, layers * most // max(size, 1)))
    if kept == layers:
        yield path, layers
        return
    with tempfile.TemporaryDirectory() as place:
        for file in path.iterdir():
            if file.name != "config.json":
                (Path(place) / file.name).symlink_to(file.resolve())
        shown = raw | {"num_hidden_layers": kept}
        if raw.get("layer_types"):
            shown["layer_types"] = raw["layer_types"][:kept]
        (Path(place) / "config.json").write_text(json.dumps(shown))
        yield Path(place), kept


def _of_learner(directory: Path, make: Callable[..., Any], tokens: torch.Tensor) -> torch.Tensor:
    """[rows, columns - 1]"""
    from miles_async.train.local_layers import is_local, local_outputs

    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with lone_model(make, str(directory), torch.float32) as (_, module), torch.no_grad():
        if not is_local(module):
            return _logprobs(module(tokens, positions, None), tokens)
        (micro,) = micro_batches(whole_sequences([*tokens.numpy()]), tokens.numel())
        logits = local_outputs(module, packed(micro, tokens.device))
        found = torch.empty(len(micro.targets))
        found[torch.from_numpy(micro.token_index)] = token_logprobs(logits, torch.from_numpy(micro.targets))[0]
        return found.view(len(tokens), -1)


def _of_transformers(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return _logprobs(model(input_ids=tokens).logits, tokens)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of each token but the first, [rows, columns - 1], from logits [rows, columns, vocabulary]."""
    return logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
