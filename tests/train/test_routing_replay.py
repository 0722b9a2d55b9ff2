"""Experts that came with the tokens take the place of those that the learner would choose, and of nothing else: scores,
gradient and losses are those of its own router."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from foreign_experts import shape_of, tokens_of, with_foreign_experts, with_routes
from train_layouts import CASES_OF_REPLAY, MIXTURE, compare, trained
from train_support import VOCAB, Build, assert_equal, hf_log_probs, make_checkpoint, make_config, make_groups

from bus.codec import LOGPROBS, VERSIONS, pack, unpack
from bus.messages import Group, Sample
from miles_async.config.effect import check_effect
from miles_async.config.schema import ConfigError
from miles_async.train import backend
from miles_async.train.batch import BatchError, MicroBatch, flatten
from miles_async.train.given_experts import GivenExperts
from miles_async.train.logprobs import token_logprobs
from miles_async.train.outputs import Outputs

REPLAY: dict[str, Any] = {"routing_replay": True}
CHOSEN = {"num_experts_per_tok": 2, "num_hidden_layers": 2}
SHARED = {"n_routed_experts": 4, "moe_intermediate_size": 24, "n_shared_experts": 1, "routed_scaling_factor": 1.5}
LATENT = {"q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
LATENT |= {"num_key_value_heads": 4, "first_k_dense_replace": 1}
QWEN = {"num_experts": 4, "moe_intermediate_size": 24}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("qwen3_moe", {**QWEN, "norm_topk_prob": True}),
    "not normalized": ("qwen3_moe", {**QWEN, "norm_topk_prob": False}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "glm4_moe": ("glm4_moe", {**SHARED, "n_group": 1, "topk_group": 1, "head_dim": 16}),
    "deepseek_v3": (
        "deepseek_v3",
        {**SHARED, **LATENT, "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4},
    ),
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture")
    make_checkpoint(path, "qwen3_moe", tied=False, **CHOSEN, **MODELS["qwen3_moe"][1])
    return path


def routers_of(theirs: Any) -> list[tuple[int, Any]]:
    """The routers of transformers' model, each with the number of its layer from 0."""
    kinds = ("topkrouter",)
    named = [(name, part) for name, part in theirs.named_modules() if type(part).__name__.lower().endswith(kinds)]
    return [(int(re.findall(r"layers\.(\d+)\.", name)[0]), part) for name, part in named]


def forced(theirs: Any) -> list[Any]:
    """From now on the routers of transformers' model weigh, by their own scores, the experts that are put into this list,
    [tokens, layers, top_k], and choose none."""
    experts: list[Any] = []

    def hook(layer: int, router: Any) -> Callable[..., Any]:
        biased, scale = hasattr(router, "e_score_correction_bias"), getattr(router, "routed_scaling_factor", 1.0)

        def instead(_: Any, args: tuple[torch.Tensor, ...], __: Any) -> tuple[torch.Tensor, ...]:
            logits = args[0].reshape(-1, args[0].shape[-1]) @ router.weight.T
            chosen = torch.as_tensor(experts[0][:, layer].astype(np.int64))
            weights = (logits.sigmoid() if biased else logits.softmax(-1)).gather(-1, chosen)
            if getattr(router, "norm_topk_prob", True):
                weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights * scale, chosen

        return instead

    for layer, router in routers_of(theirs):
        router.register_forward_hook(hook(layer, router))
    return experts


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_and_gradients_are_those_of_a_model_that_is_forced_to_these_experts(
    tmp_path: Path, build: Build, name: str
) -> None:
    model_type, settings = MODELS[name]
    theirs = make_checkpoint(tmp_path / "model", model_type, tied=False, **CHOSEN | settings).double()
    theirs.set_experts_implementation("eager")  # the usual one has no float64
    shape = shape_of(tmp_path / "model")
    groups = with_foreign_experts(make_groups(2, 3, mask_share=0.0), shape)
    experts, expected = forced(theirs), []
    for group in groups:
        for sample in group.samples:
            tokens = torch.from_numpy(tokens_of(group, sample).astype(np.int64))
            experts[:] = [shape.unpack(sample.routes)]
            logits = theirs(input_ids=tokens[None, :-1]).logits[0]
            of_tokens = logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]
            expected.append(of_tokens[-len(sample.loss_mask) :])
    of_all = torch.cat(expected)
    weigh = torch.randn(len(of_all), generator=torch.Generator().manual_seed(2))
    (of_all * weigh).sum().backward()

    trainer = build(tmp_path / "model", rollout=REPLAY, learner={"max_tokens_per_micro_batch": 40})
    sequences = flatten(groups, VOCAB, shape).sequences
    model, found = trainer._policy.model, torch.zeros(len(weigh))

    def loss(micro: MicroBatch, outputs: Outputs) -> torch.Tensor:
        logprobs = token_logprobs(outputs.values, torch.from_numpy(micro.targets))[0]
        found[micro.token_index] = logprobs.detach()
        return (logprobs * weigh[micro.token_index]).sum()

    micros = model.micro_batches(sequences)
    assert len(micros) > 1 and any(len(set(micro.widths)) > 1 for micro in micros)
    model.zero_grad()
    model.train_pass(micros, loss)
    torch.testing.assert_close(found.double(), of_all.detach(), atol=1e-5, rtol=0)
    bridge = trainer._bridge
    ours = dict(  # under transformers' names, of which the files of a mixtral have others
        (hf.replace("block_sparse_moe", "mlp"), gradient)
        for key, parameter in bridge.view(model.modules[0]).named_parameters()
        for hf, gradient in zip(*bridge.mbridge._weight_to_hf_format(key, parameter.main_grad), strict=True)
    )
    wanted = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    alike = ours.keys() & wanted.keys()  # transformers has the experts of a layer in one tensor
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.gate.weight"} <= alike
    for key in alike:
        torch.testing.assert_close(
            ours[key].double(), wanted[key], atol=2e-5, rtol=1e-3, msg=lambda t, key=key: f"{key}: {t}"
        )
    squares = [sum(float((grad.double() ** 2).sum()) for grad in of.values()) for of in (ours, wanted)]
    assert squares[0] == pytest.approx(squares[1], rel=1e-4)


def with_own_experts(build: Build, path: Path, groups: list[Group]) -> list[Group]:
    """The groups, with the experts that the learner itself chooses."""
    trainer = build(path)
    found: list[torch.Tensor] = []
    for layer in trainer._policy.model.modules[0].decoder.layers:
        layer.mlp.router.register_forward_hook(
            lambda _, __, out: found.append(out[0].topk(CHOSEN["num_experts_per_tok"])[1])
        )

    def chosen(tokens: np.ndarray[Any, Any]) -> Any:
        found.clear()
        trainer.log_probs([tokens], 1.0)
        return torch.stack(found, dim=1)

    return with_routes(groups, shape_of(path), chosen)


RECOMPUTED: list[dict[str, Any]] = [
    {},
    {"recompute_granularity": "full"},
    {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
]


@pytest.mark.parametrize("recomputed", RECOMPUTED)
def test_a_model_s_own_choice_replayed_changes_no_bit(mixture: Path, build: Build, recomputed: dict[str, Any]) -> None:
    groups = with_own_experts(build, mixture, make_groups(4, 4))
    learner = {"max_tokens_per_micro_batch": 40, "moe_aux_loss_coeff": 0.1, **recomputed}
    seen = []
    for rollout in ({}, REPLAY):
        trainer = build(mixture, rollout=rollout, learner=learner, algorithm={"old_log_probs": "recompute"})
        seen.append((trainer.step(groups), trainer.export()))
    (plain, weights), (replayed, replayed_weights) = seen
    assert replayed == plain
    assert_equal(replayed_weights, weights)


def test_experts_that_come_with_a_batch_are_replayed_only_where_that_is_asked_for(mixture: Path, build: Build) -> None:
    groups = make_groups(4, 4)
    foreign = with_foreign_experts(groups, shape_of(mixture))
    free = build(mixture).step(groups)
    assert build(mixture).step(foreign) == free
    with pytest.raises(BatchError, match="group 0-0-0, sample 0: no experts came with it"):
        build(mixture, rollout=REPLAY).step(groups)
    # the pass for log-probs and that for gradients take the same ones, or this step would end the run
    replayed = build(mixture, rollout=REPLAY, staleness={"max_lag": 0}).step(foreign)
    assert replayed["train_rollout_logprob_abs_diff"] != pytest.approx(free["train_rollout_logprob_abs_diff"], rel=1e-3)


def test_a_reference_and_a_critic_choose_experts_themselves(mixture: Path, build: Build) -> None:
    groups = with_foreign_experts(make_groups(4, 4), shape_of(mixture))
    kl = {"use_kl_loss": True, "kl_loss_coef": 0.1}
    metrics = build(mixture, rollout=REPLAY, algorithm=kl).step(groups)
    assert metrics["kl_loss"] > 1e-3  # of the same weights
    trainer = build(mixture, rollout=REPLAY, algorithm={"advantage_estimator": "ppo"})
    sequences = flatten(groups, VOCAB, shape_of(mixture)).sequences
    values = [trainer._critic.all_values(each) for each in (sequences, replace(sequences, routes=None))]
    assert torch.equal(*values)


def test_no_token_behind_one_of_other_weights_is_held_against_its_engine(mixture: Path, build: Build) -> None:
    """The engine has computed what is in front of it again, with experts that the new weights chose."""

    def of_versions(groups: list[Group], mixed: Callable[[int], bool]) -> list[Group]:
        def changed(sample: Sample) -> Sample:
            n, old = len(sample.loss_mask), mixed(sample.index)
            return msgspec.structs.replace(
                sample,
                versions=pack([0 if old and place == 0 else 1 for place in range(n)], VERSIONS),
                logprobs=pack(unpack(sample.logprobs, LOGPROBS) - (100.0 if old else 0.0), LOGPROBS),
            )

        replace_of = msgspec.structs.replace
        return [replace_of(group, samples=tuple(map(changed, group.samples))) for group in groups]

    groups = with_foreign_experts(make_groups(4, 4), shape_of(mixture))

    def apart(mixed: Callable[[int], bool]) -> float | None:
        trainer = build(mixture, rollout=REPLAY, staleness={"max_lag": 1}, learner={"lr": 1e-9})
        trainer.step(groups)
        return trainer.step(of_versions(groups, mixed)).get("on_policy_logprob_abs_diff")

    assert apart(lambda _: True) is None
    some, every = apart(lambda index: index == 0), apart(lambda _: False)
    assert some is not None and every is not None and 0.0 < some < 5.0
    trainer = build(mixture, staleness={"max_lag": 1}, learner={"lr": 1e-9})
    trainer.step(groups)  # whose routers choose by the new weights, too
    assert trainer.step(of_versions(groups, lambda index: index == 0))["on_policy_logprob_abs_diff"] > 10.0


def test_what_is_counted_is_the_experts_that_computed(mixture: Path, build: Build) -> None:
    same = with_routes(make_groups(4, 4), shape_of(mixture), lambda tokens: np.full((len(tokens) - 1, 2, 2), [1, 3]))
    for learner in (*RECOMPUTED, {"max_tokens_per_micro_batch": 20}):
        assert build(mixture, rollout=REPLAY, learner=learner).step(same)["moe_max_load"] == 2.0  # two of four have all


def test_what_is_computed_again_takes_what_its_own_micro_batch_took() -> None:
    given, scores = GivenExperts(), torch.arange(6.0).expand(1, 6)

    def chosen(experts: list[int] | None = None) -> list[int]:
        if experts is not None:
            given.give(torch.tensor([experts]) if experts else None)
        return given.get_replay_topk(scores, 2, None, None, lambda scores, k, *_: scores.topk(k))[1][0].tolist()

    for learning in (False, True, True):  # nothing is left of a pass that was given up
        given.begin(learning=learning)
        with torch.no_grad():
            assert [chosen(experts) for experts in ([1, 0], [], [2, 3])] == [[1, 0], [5, 4], [2, 3]]
    assert [chosen(), chosen()] == [[1, 0], [5, 4]]
    with torch.no_grad():
        assert chosen([4, 0]) == [4, 0]
    assert [chosen(), chosen()] == [[2, 3], [4, 0]]
    given.begin(learning=True)
    assert [chosen([1, 3]), chosen([0, 2])] == [[1, 3], [0, 2]]  # activations that are kept


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the model is, and what one process sees of it."""
    root = tmp_path_factory.mktemp("layouts")
    make_checkpoint(root / "model", "qwen3_moe", tied=False, **MIXTURE | {"num_hidden_layers": 4})
    (seen,) = trained(root, root / "model", "one", CASES_OF_REPLAY)
    return root, seen


@pytest.mark.parametrize("name", ["tp2 ep2", "pp2 vpp2", "cp2", "pp2 ep2"])
def test_however_a_model_is_split_each_token_goes_to_its_experts(alone: Any, name: str) -> None:
    compare(*alone, name, CASES_OF_REPLAY)


def sampled(path: Path, model_type: str, **settings: Any) -> list[Group]:
    """Groups whose log-probs, and experts where there are any, are those of transformers' model in bfloat16; the model at
    ``path``, the learner's, has the same weights."""
    exact = make_checkpoint(path, model_type, tied=False, **settings).bfloat16()
    exact.float().save_pretrained(path)
    engine = copy.deepcopy(exact).bfloat16()
    chosen: list[torch.Tensor] = []
    for _, router in routers_of(engine):
        router.register_forward_hook(lambda _, __, out: chosen.append(out[2]))

    def answered(group: Group, sample: Any) -> Any:
        logprobs = hf_log_probs(engine, tokens_of(group, sample))[-len(sample.loss_mask) :]
        return msgspec.structs.replace(sample, logprobs=pack(logprobs, LOGPROBS))

    groups = [
        msgspec.structs.replace(group, samples=tuple(answered(group, sample) for sample in group.samples))
        for group in make_groups(12, 4, mask_share=0.0)
    ]
    if not routers_of(engine):
        return groups

    def passed(tokens: np.ndarray[Any, Any]) -> Any:
        chosen.clear()
        hf_log_probs(engine, tokens)
        return torch.stack(chosen, dim=1)[:-1]

    return with_routes(groups, shape_of(path), passed)


def test_with_replay_engine_and_learner_differ_as_those_of_a_dense_model_do(tmp_path: Path, build: Build) -> None:
    depth = {"num_hidden_layers": 4}
    experts = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
    dense = sampled(tmp_path / "dense", "qwen3", **depth)
    mixed = sampled(tmp_path / "mixed", "qwen3_moe", **depth, **experts)

    def apart(name: str, groups: list[Group], **rollout: Any) -> float:
        return build(tmp_path / name, rollout=rollout).step(groups)["train_rollout_logprob_abs_diff"]

    usual, replayed, free = apart("dense", dense), apart("mixed", mixed, **REPLAY), apart("mixed", mixed)
    assert replayed < 1.5 * usual
    assert free > 3 * replayed


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"model_provider": "a.b"}}, "needs the routers of the built-in bridge: model.model_provider"),
        ({"learner": {"batch_function": "a.b"}}, "allowed here: no learner.batch_function"),
        (
            {"learner": {"megatron_args": {"moe_router_fusion": True}}},
            "moe_router_fusion = true leaves rollout.routing_replay",
        ),
        ({"learner": {"train_backend": "fsdp"}}, 'it needs learner.train_backend = "megatron"'),
    ],
)
def test_a_learner_that_could_replay_nothing_is_refused(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    config = make_config(tmp_path, rollout=REPLAY, **sections)
    with pytest.raises(ConfigError, match=r"rollout\.routing_replay") as caught:
        backend.check(config)
        check_effect(config, backend.effects())
    assert said in str(caught.value) and "\n" not in str(caught.value)
