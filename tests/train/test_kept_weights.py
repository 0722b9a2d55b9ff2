"""Weights beside the policy's: a reference that moves, the versions that sampled the tokens, a critic that is handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from train_support import Build, make_checkpoint, make_config, make_groups

from bus.codec import MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Group
from miles_async.config.schema import ConfigError
from miles_async.rl.rules import check_algorithm
from miles_async.train.batch import BatchError
from miles_async.train.intake import admit


def sampled_by(versions: list[int], **kwargs: Any) -> list[Group]:
    """Groups whose tokens were sampled by these versions in turn."""

    def aged(sample: Any, start: int) -> Any:
        n = len(sample.loss_mask)
        return msgspec.structs.replace(
            sample, versions=pack([versions[(start + i) % len(versions)] for i in range(n)], VERSIONS)
        )

    return [
        msgspec.structs.replace(g, samples=tuple(aged(s, i) for i, s in enumerate(g.samples)))
        for g in make_groups(**kwargs)
    ]


def logprobs_of(trainer: Any, groups: list[Group]) -> np.ndarray:
    """Of all response tokens under the weights that the trainer has now."""
    found = []
    for group in groups:
        prompt = unpack(group.prompt_tokens, TOKENS)
        whole = trainer.log_probs([np.concatenate([prompt, unpack(s.tokens, TOKENS)]) for s in group.samples], 1.0)
        found += [values[len(prompt) - 1 :] for values in whole]
    return np.concatenate(found)


def denominators_of(trainer: Any, groups: list[Group]) -> np.ndarray:
    vocab, max_lag = trainer._bridge.hf_config.vocab_size, trainer.config.staleness.max_lag
    admitted = admit(groups, trainer._groups, version=trainer.version, max_lag=max_lag, vocab_size=vocab)
    return trainer._share(admitted).current.numpy()


KEEPING: dict[str, Any] = {
    "algorithm": {"keep_old_actor": True},
    "staleness": {"max_lag": 2},
    "learner": {"lr": 1e-2, "num_steps_per_rollout": 2},
}


def test_the_denominator_is_the_log_prob_of_the_version_that_sampled_the_token(
    build: Build, qwen3: Path, tmp_path: Path
):
    trainer = build(qwen3, **KEEPING)
    groups = sampled_by([1, 2, 3, 3])
    under: dict[int, np.ndarray] = {}
    for version in range(4):
        under[version] = logprobs_of(trainer, groups)
        if version < 3:
            trainer.step(make_groups(seed=version, version=version))
    samples = [sample for group in groups for sample in group.samples]
    mask = np.concatenate([unpack(s.loss_mask, MASK) for s in samples]) != 0
    versions = np.concatenate([unpack(s.versions, VERSIONS) for s in samples])
    expected = np.choose(versions, [under[version] for version in range(4)])
    np.testing.assert_allclose(denominators_of(trainer, groups)[mask], expected[mask], atol=1e-5)
    apart = np.abs(expected - under[3])[mask & (versions < 3)]
    assert np.median(apart) > 0.01  # which the policy's own log-probs are not
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    result, weights = trainer.step(groups), trainer.export()
    trainer = build(qwen3, **KEEPING)
    trainer.load_checkpoint(tmp_path / "checkpoints")
    assert trainer.step(groups) == result
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.export().items())
    assert trainer._kept.versions == [2, 3]  # no more than the next batch can hold


def test_tokens_whose_weights_are_not_kept_are_refused_with_their_versions(build: Build, qwen3: Path, tmp_path: Path):
    plain = build(qwen3, staleness={"max_lag": 2})
    plain.step(make_groups())
    plain.save_checkpoint(tmp_path / "checkpoints", {})
    trainer = build(qwen3, **KEEPING)
    trainer.load_checkpoint(tmp_path / "checkpoints")
    with pytest.raises(
        BatchError, match=r"step 2: algorithm\.keep_old_actor = true .* versions \[0\], .* those of \[\]"
    ):
        trainer.step(sampled_by([0, 1]))
    trainer.step(make_groups(version=1))


def test_an_old_actor_is_a_way_to_recompute_and_needs_no_further_correction():
    check_algorithm(make_config("none", algorithm={"keep_old_actor": True}))
    for mode in ("rollout", "loglinear"):
        algorithm = {"keep_old_actor": True, "old_log_probs": mode, "correction": "opsm"}
        with pytest.raises(ConfigError, match=f'algorithm.old_log_probs = "{mode}" has to be "recompute"'):
            check_algorithm(make_config("none", algorithm=algorithm))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_policy_becomes_the_reference_after_so_many_versions_also_across_a_restart(
    build: Build, qwen3: Path, tmp_path: Path, sharded: bool
):
    sections: dict[str, Any] = {
        "algorithm": {"use_kl_loss": True, "kl_loss_coef": 0.1, "kl_loss_type": "k2", "ref_update_interval": 2},
        "learner": {"use_distributed_optimizer": sharded, "lr": 1e-2},
    }
    trainer = build(qwen3, **sections)
    batches = [make_groups(seed=seed) for seed in range(4)]
    apart = [trainer.step(groups)["kl_loss"] for groups in batches[:3]]
    assert apart[0] == pytest.approx(0, abs=1e-9) and apart[1] > 1e-5 and apart[2] == pytest.approx(0, abs=1e-9)
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    last = trainer.step(batches[3])
    assert last["kl_loss"] > 1e-5
    trainer = build(qwen3, **sections)
    trainer.load_checkpoint(tmp_path / "checkpoints")
    assert trainer.step(batches[3]) == last


@pytest.mark.parametrize("tied", [True, False])
def test_a_critic_that_was_saved_is_loaded_with_its_head_and_by_transformers(build: Build, tmp_path: Path, tied: bool):
    from transformers import AutoModelForTokenClassification

    make_checkpoint(tmp_path / "model", tied=tied)
    sections: dict[str, Any] = {"algorithm": {"advantage_estimator": "ppo"}, "learner": {"lr": 1e-2}}
    trainer = build(tmp_path / "model", **sections)
    for seed in range(2):
        trainer.step(make_groups(seed=seed))
    trainer.save_critic(tmp_path / "hf_critic")
    groups = make_groups(seed=2, mask_share=0.0)

    def values(trainer: Any) -> np.ndarray:
        admitted = admit(groups, trainer._groups, version=trainer.version, max_lag=1000, vocab_size=24)
        return trainer._critic.all_values(admitted.batch.sequences).numpy()

    expected = values(trainer)
    assert np.abs(expected).max() > 0.01
    trainer = build(tmp_path / "model", critic={"critic_load": str(tmp_path / "hf_critic")}, **sections)
    np.testing.assert_array_equal(values(trainer), expected)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "hf_critic", dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for group in groups:
            prompt = unpack(group.prompt_tokens, TOKENS)
            for sample in group.samples:
                ids = torch.from_numpy(np.concatenate([prompt, unpack(sample.tokens, TOKENS)]).astype(np.int64))[None]
                found.append(model(input_ids=ids).logits[0, len(prompt) - 1 : -1, 0].numpy())
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
