"""The learner with what is more than a policy loss: a reference, a teacher, functions of the user, checks at run time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from train_support import Build, hf_log_probs, make_checkpoint, make_groups

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import UNSAMPLED, Group
from miles_async.train.batch import BatchError
from miles_async.train.mismatch import warning
from miles_async.train.on_policy import NotOnPolicyError


def log_probs_of(model: Any, group: Group) -> list[np.ndarray]:
    """Of the response tokens of each sample."""
    prompt = unpack(group.prompt_tokens, TOKENS)
    return [
        hf_log_probs(model, np.concatenate([prompt, unpack(s.tokens, TOKENS)]))[len(prompt) - 1 :]
        for s in group.samples
    ]


def trained(groups: list[Group], per_token: Callable[[Group], list[np.ndarray]]) -> np.ndarray:
    """The values of all trained tokens, one after the other."""
    return np.concatenate(
        [
            values[unpack(sample.loss_mask, MASK) != 0]
            for group in groups
            for sample, values in zip(group.samples, per_token(group), strict=True)
        ]
    )


def test_the_reference_is_the_first_model_however_far_the_learner_has_come(build: Build, qwen3_and_model) -> None:
    path, model = qwen3_and_model
    algorithm = {"use_kl_loss": True, "kl_loss_coef": 0.1, "kl_loss_type": "k2"}
    trainer = build(path, algorithm=algorithm, learner={"lr": 1e-2})
    assert trainer.step(make_groups(policy=model))["kl_loss"] == pytest.approx(0.0, abs=1e-9)
    groups = make_groups(seed=1, policy=model)
    sequences = [
        np.concatenate([unpack(g.prompt_tokens, TOKENS), unpack(s.tokens, TOKENS)]) for g in groups for s in g.samples
    ]
    now = iter(trainer.log_probs(sequences, 1.0))
    current = trained(groups, lambda g: [next(now)[len(g.prompt_tokens) // 4 - 1 :] for _ in g.samples])
    apart = current - trained(groups, lambda g: log_probs_of(model, g))
    assert np.abs(apart).max() > 0.01
    assert trainer.step(groups)["kl_loss"] == pytest.approx(float((apart**2).mean() / 2), rel=1e-3)


def test_a_pass_of_the_reference_leaves_the_weights_bit_for_bit(build: Build, qwen3_and_model) -> None:
    path, model = qwen3_and_model
    algorithm = {"use_kl_loss": True}
    observed = build(path, algorithm=algorithm)
    for seed in range(2):
        observed.step(make_groups(seed=seed, policy=model))
    with_reference = observed.export()
    plain = build(path)
    for seed in range(2):
        plain.step(make_groups(seed=seed, policy=model))
    for name, tensor in plain.export().items():
        assert torch.equal(tensor, with_reference[name]), name


def test_another_reference_is_loaded_from_ref_load(build: Build, qwen3_and_model, tmp_path: Path) -> None:
    path, model = qwen3_and_model
    other = make_checkpoint(tmp_path / "other")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    other.save_pretrained(tmp_path / "other")
    algorithm = {"use_kl_loss": True, "kl_loss_type": "k1", "ref_load": str(tmp_path / "other")}
    groups = make_groups(policy=model)
    apart = trained(groups, lambda g: log_probs_of(model, g)) - trained(groups, lambda g: log_probs_of(other, g))
    assert build(path, algorithm=algorithm).step(groups)["kl_loss"] == pytest.approx(float(apart.mean()), abs=1e-5)


def taught(groups: list[Group], shift: float) -> list[Group]:
    """The groups with a teacher whose log-probs are ``shift`` above the engine's."""

    def teach(sample: Any) -> Any:
        logprobs = unpack(sample.logprobs, LOGPROBS) + np.float32(shift)
        return msgspec.structs.replace(sample, teacher_logprobs=pack(logprobs, LOGPROBS))

    return [msgspec.structs.replace(g, samples=tuple(teach(s) for s in g.samples)) for g in groups]


def test_a_teacher_moves_every_advantage_by_the_coefficient_times_the_log_ratio(build: Build, qwen3_and_model) -> None:
    """With equal rewards the advantages are the teacher's alone: 0.5 * 0.3 for each token."""
    path, model = qwen3_and_model
    groups = [
        msgspec.structs.replace(g, samples=tuple(msgspec.structs.replace(s, reward=1.0) for s in g.samples))
        for g in make_groups(policy=model, mask_share=0.0)
    ]
    algorithm = {"use_opd": True, "opd_kl_coef": 0.5, "eps_clip": 0.99}
    metrics = build(path, algorithm=algorithm).step(taught(groups, 0.3))
    ratio = np.exp(
        trained(groups, lambda g: log_probs_of(model, g))
        - trained(groups, lambda g: [unpack(s.logprobs, LOGPROBS) for s in g.samples])
    )
    assert metrics["pg_loss"] == pytest.approx(float(-(np.minimum(ratio, 1.99) * 0.15).mean()), rel=1e-4)
    with pytest.raises(BatchError, match="without a teacher's log-probs"):
        build(path, algorithm=algorithm).step(groups)


def test_supervised_fine_tuning_is_the_mean_negative_log_likelihood_of_unsampled_tokens(
    build: Build, qwen3_and_model
) -> None:
    path, model = qwen3_and_model
    groups = [
        msgspec.structs.replace(
            g,
            samples=tuple(
                msgspec.structs.replace(
                    s, versions=pack(np.full(len(s.loss_mask), UNSAMPLED), VERSIONS), logprobs=bytes(len(s.logprobs))
                )
                for s in g.samples
            ),
        )
        for g in make_groups(policy=model, mask_share=0.0)
    ]
    trainer = build(path, algorithm={"loss_type": "sft_loss"}, staleness={"max_lag": 0})
    expected = -trained(groups, lambda g: log_probs_of(model, g)).mean()
    first = trainer.step(groups)
    assert first["loss"] == pytest.approx(float(expected), rel=1e-5) and first["max_token_lag"] == 0
    assert trainer.step(groups)["loss"] < first["loss"]


HOOKS = """
import torch
calls = []

def before_pass(trainer, name):
    calls.append(name)

def disturb(trainer, name):
    with torch.no_grad():
        next(trainer._policy.model.modules[0].parameters()).add_(0.01)

def before_step(trainer, step):
    calls.append(step)

def batch(groups, vocab_size):
    from miles_async.train.batch import flatten
    calls.append(len(groups))
    return flatten(groups, vocab_size)

def provider(path, dtype, device):
    from miles_async.train.bridge import ModelBridge
    calls.append("provider")
    return ModelBridge(path, dtype, device)
"""


def hook_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_hooks.py"
    path.write_text(HOOKS)
    return path


def test_functions_of_the_user_are_called_around_a_step(build: Build, qwen3_and_model, tmp_path: Path) -> None:
    path, model = qwen3_and_model
    file = hook_file(tmp_path)
    learner = {
        "batch_function": f"{file}:batch",
        "before_log_prob_function": f"{file}:before_pass",
        "before_train_step_function": f"{file}:before_step",
    }
    trainer = build(
        path,
        model={"model_provider": f"{file}:provider"},
        learner=learner,
        algorithm={"use_kl_loss": True, "correction": "m2po"},
    )
    trainer.step(make_groups(3, policy=model))
    calls = sys.modules[f"my_hooks@{file.resolve()}"].calls
    assert calls == ["provider", "provider", 3, 1, "reference", "current"]


def test_a_synchronous_run_whose_two_passes_differ_ends_before_its_first_update(
    build: Build, qwen3_and_model, tmp_path: Path
) -> None:
    path, model = qwen3_and_model
    sections: dict[str, Any] = {"staleness": {"max_lag": 0}}
    learner = {"before_log_prob_function": f"{hook_file(tmp_path)}:disturb"}
    trainer = build(path, **sections)
    assert abs(trainer.step(make_groups(policy=model))["ois"] - 1) < 0.5  # the same model twice: nothing to complain of

    def undone(name: str) -> None:
        with torch.no_grad():
            next(trainer._policy.model.modules[0].parameters()).sub_(0.01)

    trainer = build(path, learner=learner, **sections)
    original = trainer._all_logprobs

    def passes(sequences: Any, name: str) -> torch.Tensor:
        result = original(sequences, name)
        undone(name)
        return result

    trainer._all_logprobs = passes  # type: ignore[method-assign]
    with pytest.raises(NotOnPolicyError, match="ppo_kl"):
        trainer.step(make_groups(policy=model))
    assert trainer.version == 0


def test_a_mismatch_of_the_learners_own_version_is_warned_of_with_its_causes() -> None:
    assert warning({"on_policy_logprob_abs_diff": 0.04}, 0.05) == ""
    assert warning({}, 0.05) == ""  # nothing of this version was trained: nothing can be said
    text = warning({"on_policy_logprob_abs_diff": 0.3}, 0.05)
    assert "0.3" in text and "temperature" in text and "\n" not in text


def test_the_mismatch_is_measured_on_the_learners_own_version_only(build: Build, qwen3_and_model) -> None:
    path, model = qwen3_and_model
    trainer = build(path, algorithm={"correction": "behaviour"}, learner={"lr": 1e-9})
    trainer.step(make_groups(policy=model))
    old, new = make_groups(2, seed=1, policy=model), make_groups(2, seed=2, policy=model, version=1)
    metrics = trainer.step([*old, *new])
    noise = trained(new, lambda g: log_probs_of(model, g)) - trained(
        new, lambda g: [unpack(s.logprobs, LOGPROBS) for s in g.samples]
    )
    assert metrics["on_policy_logprob_abs_diff"] == pytest.approx(float(np.abs(noise).mean()), rel=1e-3)
    assert "on_policy_logprob_abs_diff" not in trainer.step(old)
