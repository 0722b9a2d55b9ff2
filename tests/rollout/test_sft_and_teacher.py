"""Supervised fine-tuning and on-policy distillation, the rollout's side."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from embedded_engines import engines
from launching import launch, metrics, summary, write_config

from bus.codec import LOGPROBS, MASK, TOKENS, pack, unpack
from bus.messages import UNSAMPLED, Sample, Ticket
from miles_async.cli.load import load
from miles_async.config.schema import ConfigError, Data, Model, RunConfig
from miles_async.engines.client import EngineClient
from miles_async.models.builtin import make_model
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.sft import SftError, rollout
from miles_async.rollout.teacher import TeacherError, Teachers
from miles_async.text.tokenizer import Tokenizer

CHAT = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
]


@pytest.fixture(scope="module")
def words_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("words")
    make_model("builtin:words", directory, seed=1)
    return directory


def values(run_dir: Path, name: str) -> list[float]:
    """A metric of every step."""
    return [line["values"][name] for line in metrics(run_dir) if name in line["values"]]


async def nobody(body: dict[str, Any]) -> list[dict[str, Any]]:
    raise AssertionError("nothing is generated")


async def sft(model: Path, ticket: Ticket) -> Sample:
    config = RunConfig(model=Model(hf_checkpoint=str(model)), data=Data(prompt_data="x"))
    async with contextlib.AsyncExitStack() as stack:
        (sample,) = await rollout(ticket, RolloutContext(config, Tokenizer(model), nobody, stack))
    return sample


async def test_what_the_assistant_says_is_trained_on_and_nothing_else(words_model: Path) -> None:
    tokenizer = Tokenizer(words_model)
    sample = await sft(
        words_model, Ticket(group_id="0-0-0", prompt_tokens=b"", sampling_seed=1, metadata={"messages": CHAT})
    )
    prompt, tokens = unpack(sample.prompt_tokens, TOKENS).tolist(), unpack(sample.tokens, TOKENS).tolist()
    assert tokenizer.decode(prompt + tokens) == tokenizer.render_chat(CHAT, add_generation_prompt=False)
    mask = unpack(sample.loss_mask, MASK)
    written = tokenizer.decode([token for token, one in zip(tokens, mask, strict=True) if one])
    assert written == "4\nyes\n"  # and how each of its messages ends
    assert tokenizer.decode(prompt).endswith("assistant: ")
    assert set(np.frombuffer(sample.versions, "<i4").tolist()) == {UNSAMPLED}


async def test_a_plain_prompt_is_answered_by_its_label_and_an_end(words_model: Path) -> None:
    tokenizer = Tokenizer(words_model)
    ticket = Ticket(
        group_id="0-0-0", prompt_tokens=pack(tokenizer.encode("one and one?"), TOKENS), sampling_seed=1, label="two"
    )
    sample = await sft(words_model, ticket)
    assert unpack(sample.tokens, TOKENS).tolist() == [*tokenizer.encode("two"), tokenizer.eos_token_ids[0]]
    with pytest.raises(SftError, match="neither"):
        await sft(words_model, Ticket(group_id="0-0-0", prompt_tokens=ticket.prompt_tokens, sampling_seed=1))


def test_a_run_of_supervised_fine_tuning_lowers_the_loss(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run={"num_steps": 12, "seed": 3, "stop_timeout_s": 20.0},
        rollout={"rollout_function": "sft", "rollout_batch_size": 8, "n_samples_per_prompt": 1},
        algorithm={"loss_type": "sft_loss"},
        learner={"lr": 5e-3},
    )
    result = launch(config, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    losses = values(tmp_path / "run", "loss")
    assert len(losses) == 12 and losses[-1] < 0.8 * losses[0]
    found = summary(tmp_path / "run")
    assert found["balanced"] and found["max_token_lag"] == 0
    # its loss is what is shown, and nobody is started who would only idle
    assert found["reward_last"] is None and found["loss_last"] < found["loss_first"]
    assert f"loss     {found['loss_first']:.3f} -> {found['loss_last']:.3f}" in result.stdout
    assert "reward" not in result.stdout
    logs = {path.stem for path in (tmp_path / "run" / "logs").glob("*.log")}
    assert {"learner-0", "rollout-0", "dealer"} <= logs
    assert not {log for log in logs if log.startswith(("engine", "router", "broadcaster"))}


async def test_a_teacher_scores_the_tokens_that_were_sampled(digits_model: Path, tmp_path: Path) -> None:
    make_model("builtin:digits", tmp_path / "teacher", seed=9)
    with engines(tmp_path / "teacher", 1) as (teacher,):
        async with aiohttp.ClientSession() as session:
            client = EngineClient(teacher.url, session)
            prompt = Tokenizer(digits_model).encode("7>3>")
            sampled: Any = await client.generate(
                {"input_ids": prompt, "sampling_params": {"max_new_tokens": 6}, "return_logprob": True}
            )
            own = sampled["meta_info"]["output_token_logprobs"]
            tokens = [entry[1] for entry in own]
            n = len(tokens)
            sample = Sample(
                index=0,
                tokens=pack(tokens, TOKENS),
                logprobs=pack(np.zeros(n), LOGPROBS),
                loss_mask=pack(np.ones(n), MASK),
                versions=bytes(4 * n),
                reward=0.0,
                finish_reason="stop",
            )
            ticket = Ticket(group_id="0-0-0", prompt_tokens=pack(prompt, TOKENS), sampling_seed=1)
            (taught,) = await Teachers({"default": client}, 30.0).teach(ticket, [sample])
            # the teacher sampled them itself, so it must find them as likely as it said then
            assert unpack(taught.teacher_logprobs, LOGPROBS) == pytest.approx([entry[0] for entry in own], abs=1e-5)
            with pytest.raises(TeacherError, match='wants the teacher "strict"; there are kind'):
                strict = Ticket(
                    group_id="0-1-0", prompt_tokens=b"", sampling_seed=1, metadata={"opd_teacher": "strict"}
                )
                await Teachers({"kind": client}, 30.0).teach(strict, [sample])


TOP = {"opd_log_prob_top_k": 3, "opd_top_k_strategy": "intersection", "opd_top_k_weight": "teacher_p"}


@pytest.mark.parametrize("more", [{}, TOP], ids=["sampled", "top-k"])
def test_a_run_with_a_teacher_learns_from_it_alone(tmp_path: Path, more: dict[str, Any]) -> None:
    """Every reward is the same: what moves the policy is the teacher's log-probs, so it comes closer to them."""
    make_model("builtin:digits", tmp_path / "teacher", seed=9)
    with engines(tmp_path / "teacher", 1) as (teacher,):
        config = write_config(
            tmp_path,
            run={"num_steps": 12, "seed": 3, "stop_timeout_s": 20.0},
            rollout={
                "rollout_batch_size": 8,
                "n_samples_per_prompt": 4,
                "rollout_max_response_len": 10,
            },
            algorithm={"correction": "behaviour", "use_opd": True, **more},
            learner={"lr": 5e-3},
            reward={"rm_type": f"{Path(__file__).parents[1] / 'support' / 'constant_reward.py'}:reward"},
        )
        with config.open("a") as file:
            file.write(f'[rollout.opd_teacher_urls]\ndefault = "{teacher.url}"\n')
        result = launch(config, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    apart = values(tmp_path / "run", "opd_reverse_kl")
    assert len(apart) == 12 and apart[-1] < 0.7 * apart[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.use_opd=true"], "needs a teacher: rollout.opd_teacher_urls"),
        (["algorithm.loss_type=sft_loss"], 'needs rollout.rollout_function = "sft"'),
    ],
)
def test_half_of_a_setting_is_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write_config(tmp_path), overrides)
