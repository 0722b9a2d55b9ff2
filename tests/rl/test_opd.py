"""On-policy distillation by the teacher's likeliest tokens: closed forms, the learner's pass, and who may ask for what."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
import torch
from embedded_engines import engines
from train_support import VOCAB, hf_log_probs, make_checkpoint, make_groups, trainers

from bus.codec import LOGPROBS, MASK, TOKENS, pack, unpack
from bus.messages import Group, Sample, Ticket
from miles_async.engines.client import EngineClient, EngineError
from miles_async.groups.sound import Limits, UnsoundGroup, check_group
from miles_async.rl.opd import TopTokens, reverse_kl
from miles_async.rollout.teacher import TeacherError, Teachers
from miles_async.train.batch import flatten

K = 3


def by_hand(top: TopTokens, sampled: float, of_teacher: float, row: int, strategy: str, weight: str) -> float:
    pairs = [
        (top.student[row, i].item(), top.teacher[row, i].item())
        for i in range(top.student.shape[1])
        if strategy == "only-teacher" or bool(top.shared[row, i])
    ]
    if not pairs:
        return sampled - of_teacher
    scores = [math.exp({"student_p": s, "teacher_p": t, "none": 0.0}[weight]) for s, t in pairs]
    return sum(w / sum(scores) * (s - t) for w, (s, t) in zip(scores, pairs, strict=True))


@pytest.mark.parametrize("weight", ["student_p", "teacher_p", "none"])
@pytest.mark.parametrize("strategy", ["only-teacher", "intersection"])
def test_the_reverse_kl_over_a_set_is_its_weighted_mean_difference(strategy: Any, weight: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = (-3 * torch.rand(20, K, generator=generator) for _ in range(2))
    shared = torch.rand(20, K, generator=generator) < 0.4
    assert not shared.any(-1).all() and shared.any()  # some positions share no token
    top = TopTokens(student, teacher, shared)
    sampled, of_teacher = torch.full((20,), -1.0), torch.full((20,), -2.5)
    found = reverse_kl(top, sampled, of_teacher, strategy=strategy, weight=weight)
    wanted = [by_hand(top, -1.0, -2.5, row, strategy, weight) for row in range(20)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def taught(groups: list[Group], seed: int = 0, k: int = K) -> list[Group]:
    """The groups with a teacher's log-probs of ``k`` random tokens at each position."""
    rng = np.random.default_rng(seed)

    def teach(sample: Sample) -> Sample:
        n = len(sample.loss_mask)
        ids = np.stack([rng.permutation(VOCAB)[:k] for _ in range(n)]) if n else np.zeros((0, k))
        return msgspec.structs.replace(
            sample,
            teacher_logprobs=pack(-1 - rng.random(n), LOGPROBS),
            teacher_top_tokens=pack(ids.reshape(-1), TOKENS),
            teacher_top_logprobs=pack(-1 - rng.random(n * k), LOGPROBS),
        )

    return [msgspec.structs.replace(group, samples=tuple(map(teach, group.samples))) for group in groups]


@pytest.mark.parametrize("steps", [1, 2])
def test_the_learners_log_probs_of_the_teachers_tokens_are_its_own(tmp_path: Path, steps: int) -> None:
    model = make_checkpoint(tmp_path / "model")
    (tmp_path / "meetings").mkdir()
    groups = taught(make_groups(seed=3, policy=model))
    algorithm = {
        "correction": "behaviour",
        "use_opd": True,
        "opd_log_prob_top_k": K,
        "opd_top_k_weight": "none",
        "old_log_probs": "rollout",
    }
    rollout = {"rollout_temperature": 0.8, "rollout_batch_size": 4, "n_samples_per_prompt": 4}
    with trainers(tmp_path / "meetings") as build:
        trainer = build(
            tmp_path / "model", algorithm=algorithm, rollout=rollout, learner={"num_steps_per_rollout": steps}
        )
        found = trainer.step(groups)["opd_reverse_kl"]
    parts, weights = [], []
    for group in groups:
        prompt = unpack(group.prompt_tokens, TOKENS)
        for sample in group.samples:
            tokens, mask = unpack(sample.tokens, TOKENS), unpack(sample.loss_mask, MASK)
            ids = unpack(sample.teacher_top_tokens, TOKENS).reshape(-1, K)
            of_teacher = unpack(sample.teacher_top_logprobs, LOGPROBS).reshape(-1, K)
            for t in np.flatnonzero(mask):
                prefix = np.concatenate([prompt, tokens[:t]])
                own = [hf_log_probs(model, np.append(prefix, i), 0.8)[-1] for i in ids[t]]
                parts.append(float(np.mean(np.array(own) - of_teacher[t])))
                weights.append(group.group_id)
    halves = [np.mean([p for p, g in zip(parts, weights, strict=True) if (int(g[2]) >= 2) == late]) for late in (0, 1)]
    wanted = float(np.mean(parts)) if steps == 1 else float(np.mean(halves))
    assert found == pytest.approx(wanted, abs=1e-4)


def test_what_is_likeliest_is_the_learners_own_top(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    (tmp_path / "meetings").mkdir()
    batch = flatten(taught(make_groups(seed=4, mask_share=0.0)), VOCAB)
    assert batch.teacher_top is not None
    with trainers(tmp_path / "meetings") as build:
        trainer = build(tmp_path / "model")
        logprobs, shared = trainer._policy.of_tokens(batch.sequences, batch.teacher_top[0])
    first = 0
    for start, prompt, length in zip(
        np.cumsum(batch.sequences.lengths) - batch.sequences.lengths,
        batch.sequences.prompt_lengths,
        batch.sequences.lengths,
        strict=True,
    ):
        ids = torch.from_numpy(batch.sequences.tokens[start : start + length].astype(np.int64))[None]
        with torch.no_grad():
            every = model(input_ids=ids).logits[0].log_softmax(-1)
        for t in range(length - prompt):
            row, wanted = every[prompt + t - 1], torch.from_numpy(batch.teacher_top[0][first].astype(np.int64))
            torch.testing.assert_close(logprobs[first], row[wanted], rtol=0, atol=1e-4)
            likeliest = set(row.topk(K).indices.tolist())
            assert shared[first].tolist() == [int(i) in likeliest for i in wanted]
            first += 1
    assert first == len(batch.behaviour)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("teacher_top_tokens", b"", "has not 3 of the teacher's likeliest"),
        ("teacher_top_tokens", None, "log-prob of token 999"),
        ("teacher_top_logprobs", None, "is nan"),
    ],
)
def test_a_group_without_the_teachers_tokens_is_refused_before_publication(field: str, value: Any, words: str) -> None:
    (group,) = taught(make_groups(count=1, mask_share=0.0))
    limits = Limits(vocab_size=VOCAB, taught=True, teacher_top_k=K)
    check_group(group, limits)
    sample = group.samples[0]
    dtype, wrong = (TOKENS, 999) if field.endswith("tokens") else (LOGPROBS, math.nan)
    if value is None:
        array = unpack(getattr(sample, field), dtype).copy()
        array[0] = wrong
        value = pack(array, dtype)
    broken = msgspec.structs.replace(sample, **{field: value})
    with pytest.raises(UnsoundGroup, match=words):
        check_group(msgspec.structs.replace(group, samples=(broken, *group.samples[1:])), limits)


async def test_a_teacher_is_asked_for_its_likeliest_tokens(digits_model: Path) -> None:
    with engines(digits_model, 1) as (teacher,):
        async with aiohttp.ClientSession() as session:
            client = EngineClient(teacher.url, session)
            prompt, tokens = [3, 4, 5], [6, 7, 8, 9]
            sample = Sample(
                index=0,
                tokens=pack(tokens, TOKENS),
                logprobs=pack([-1.0] * 4, LOGPROBS),
                loss_mask=pack([1] * 4, MASK),
                versions=bytes(16),
                reward=0.0,
                finish_reason="stop",
            )
            ticket = Ticket(group_id="0-0-0", prompt_tokens=pack(prompt, TOKENS), sampling_seed=1)
            (found,) = await Teachers({"default": client}, 30.0, top_k=16).teach(ticket, [sample])
            ids = unpack(found.teacher_top_tokens, TOKENS).reshape(4, 16)
            values = unpack(found.teacher_top_logprobs, LOGPROBS).reshape(4, 16)
            # all 16 tokens of the vocabulary: a distribution, likeliest first, in which the sampled token has its log-prob
            assert np.exp(values).sum(axis=1) == pytest.approx(np.ones(4), abs=1e-5)
            assert (np.diff(values, axis=1) <= 0).all() and all(sorted(row) == list(range(16)) for row in ids.tolist())
            own = [values[t][ids[t].tolist().index(token)] for t, token in enumerate(tokens)]
            assert unpack(found.teacher_logprobs, LOGPROBS) == pytest.approx(own, abs=1e-6)
            with pytest.raises((EngineError, TeacherError), match="top_logprobs_num"):
                await Teachers({"default": client}, 30.0, top_k=17).teach(ticket, [sample])
