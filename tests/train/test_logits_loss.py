"""A policy loss of the user's that looks at the model's logits trains like one that looks at log-probs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_support import make_checkpoint, make_groups, trainers

from miles_async.config.schema import ConfigError

LOSSES = """
import torch
from miles_async.rl.terms import with_logits

def by_logprobs(terms, algorithm):
    return -terms.advantages * terms.logprobs, {}

@with_logits
def by_logits(terms, algorithm):
    every = (terms.logits.float() / 0.7).log_softmax(-1)
    sampled = every.gather(-1, terms.targets[:, None])[:, 0]
    return -terms.advantages * sampled, {"top": every.detach().amax(-1)}

@with_logits
def of_one_token(terms, algorithm):
    return terms.logits[:, 23].float(), {}

@with_logits
def of_all_at_once(terms, algorithm):
    return terms.logits.sum(), {}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    make_checkpoint(directory)
    return directory


def test_a_loss_on_logits_trains_as_the_same_loss_on_log_probs(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(LOSSES)
    meetings = tmp_path / "meetings"
    meetings.mkdir()
    rollout = {"rollout_temperature": 0.7}
    found, weights = {}, {}
    with trainers(meetings) as build:
        for name in ("by_logprobs", "by_logits"):
            algorithm = {"policy_loss": f"{file}:{name}", "correction": "uncorrected", "old_log_probs": "recompute"}
            trainer = build(checkpoint, algorithm=algorithm, rollout=rollout)
            found[name] = [trainer.step(make_groups(seed=seed)) for seed in range(2)]
            weights[name] = trainer.export()
    for plain, full in zip(found["by_logprobs"], found["by_logits"], strict=True):
        assert full["loss"] == pytest.approx(plain["loss"], abs=1e-6)
        assert full["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
        assert full["top"] < 0 and "top" not in plain
    for name, tensor in weights["by_logprobs"].items():
        torch.testing.assert_close(weights["by_logits"][name], tensor, rtol=0, atol=1e-5)


def test_a_loss_may_look_at_any_token_and_is_refused_for_its_shape_before_a_step(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(LOSSES)
    meetings = tmp_path / "meetings"
    meetings.mkdir()
    chosen = {"correction": "uncorrected", "old_log_probs": "recompute"}
    with trainers(meetings) as build:
        trainer = build(checkpoint, algorithm={**chosen, "policy_loss": f"{file}:of_one_token"})
        assert trainer.step(make_groups())["grad_norm"] > 0
        with pytest.raises(ConfigError, match=r"algorithm\.policy_loss, mine\.py:of_all_at_once: .* shape \(\)"):
            build(checkpoint, algorithm={**chosen, "policy_loss": f"{file}:of_all_at_once"})
