"""``learner.fp32_parameters``: weights that stay float32 in a bfloat16 model, in every pass, step, checkpoint and layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_layouts import LAYOUTS
from train_ranks import share, spawn
from train_support import Build, assert_equal, make_checkpoint, make_config, make_groups

from miles_async.config.layout import layout_of
from miles_async.config.schema import ConfigError
from miles_async.models.kept_types import check_kept_types
from miles_async.models.support import ModelError
from miles_async.train.ranks import Ranks

DENSE = ["lm_head.weight", "*norm.weight", "*.self_attn.q_proj.weight"]
SPARSE = ["*.mlp.gate.weight", "model.embed_tokens.weight", "*.experts.*.down_proj.weight"]
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MODELS: dict[str, tuple[list[str], dict[str, Any]]] = {"qwen3": (DENSE, {}), "qwen3_moe": (SPARSE, MIXTURE)}
MARKED = {  # Megatron's names
    "qwen3": ("output_layer.weight", "norm.weight", ".self_attention.linear_qkv.weight"),
    "qwen3_moe": (".mlp.router.weight", "word_embeddings.weight", ".linear_fc2.weight"),
}
OPTIMIZERS = [False, True]


def parameters(trainer: Any) -> dict[str, torch.nn.Parameter]:
    modules = enumerate(trainer._policy.model.modules)
    return {f"{i}.{name}": parameter for i, module in modules for name, parameter in module.named_parameters()}


def assert_marked(trainer: Any, kind: str) -> None:
    ends = MARKED[kind]
    types = {name: parameter.dtype for name, parameter in parameters(trainer).items()}
    assert types == {name: torch.float32 if name.endswith(ends) else torch.bfloat16 for name in types}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("distributed", OPTIMIZERS)
def test_they_are_float32_when_built_trained_saved_and_restored(
    build: Build, tmp_path: Path, kind: str, distributed: bool
) -> None:
    patterns, shape = MODELS[kind]
    make_checkpoint(tmp_path / "model", kind, tied=False, **shape)
    sections: dict[str, Any] = {
        "model": {"dtype": "bfloat16"},
        "learner": {"fp32_parameters": patterns, "use_distributed_optimizer": distributed},
    }
    trainer = build(tmp_path / "model", **sections)
    assert_marked(trainer, kind)
    assert all(any(name.endswith(end) for name in parameters(trainer)) for end in MARKED[kind])
    trainer.save_checkpoint(tmp_path / "untrained", {})
    first = [trainer.step(make_groups(4, 4, seed=step)) for step in range(2)]
    assert_marked(trainer, kind)
    path = trainer.save_checkpoint(tmp_path / "trained", {})
    weights = {name: parameter.detach().clone() for name, parameter in parameters(trainer).items()}
    assert all(not torch.equal(w, w.bfloat16().float()) for w in weights.values() if w.dtype is torch.float32)
    exported, third = trainer.export(), trainer.step(make_groups(4, 4, seed=2))
    other = build(tmp_path / "model", **sections)
    other.load_checkpoint(tmp_path / "trained")
    assert_marked(other, kind)
    assert_equal({name: parameter.detach() for name, parameter in parameters(other).items()}, weights)
    assert_equal(other.export(), exported)
    assert other.step(make_groups(4, 4, seed=2)) == third
    other.load_checkpoint(tmp_path / "untrained")
    assert [other.step(make_groups(4, 4, seed=step)) for step in range(2)] == first
    other.close()
    assert_equal(type(other).checkpoint_weights(other.config, tmp_path / "model", path), exported)


def test_a_step_too_small_for_bfloat16_moves_them_as_adam_moves_float32(build: Build, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", tied=True)
    learner = {
        "lr": 1e-6,
        "adam_eps": 1e-8,
        "weight_decay": 0.1,
        "clip_grad": 0.0,
        "fp32_parameters": ["*.embed_tokens.weight"],
    }
    trainer = build(tmp_path / "model", model={"dtype": "bfloat16"}, learner=learner)
    before = {name: parameter.detach().clone() for name, parameter in parameters(trainer).items()}
    name = "0.embedding.word_embeddings.weight"  # of the output layer, too
    ours = before[name].clone().requires_grad_()
    adam = torch.optim.AdamW([ours], lr=1e-6, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    model = trainer._policy.model
    apply = model.apply_gradients

    def also_ours() -> dict[str, float]:
        ours.grad = parameters(trainer)[name].main_grad.clone()
        adam.step()
        return apply()

    model.apply_gradients = also_ours
    for step in range(3):
        assert trainer.step(make_groups(4, 4, seed=step))["grad_norm"] > 0
    after = parameters(trainer)
    torch.testing.assert_close(after[name].detach(), ours.detach(), atol=1e-9, rtol=1e-6)
    moved = {other: float((after[other] != before[other]).float().mean()) for other in after}
    assert moved.pop(name) > 0.9 and max(moved.values()) < 0.1


def trained_apart(rank: int, model: str, root: str, name: str, kind: str) -> None:
    """Goes on from what one process saved; what all ranks hold, and rank 0's metrics, to ``NAME.pt``."""
    from miles_async.train.trainer import MegatronTrainer

    layout = LAYOUTS[name]
    seen: dict[str, Any] = {}
    for distributed in OPTIMIZERS:
        learner = {
            "fp32_parameters": MODELS[kind][0],
            "use_distributed_optimizer": distributed,
            "grad_reduce_timeout_s": 60.0,
        }
        config = make_config(model, model={"dtype": "bfloat16"}, learner={**learner, **layout})
        place = f"file://{root}/meeting-{name}-{distributed}"
        ranks = Ranks(rank, layout["num_ranks"], place, layout_of(config.learner))
        trainer = MegatronTrainer(config, model, ranks)
        assert_marked(trainer, kind)
        checkpoint = Path(root) / f"checkpoint-{distributed}"
        if name == "one":
            trainer.step(make_groups(4, 4, seed=0))
            trainer.save_checkpoint(checkpoint, {})
        else:
            trainer.load_checkpoint(checkpoint)
        restored = trainer.export()
        metrics = [trainer.step(share(make_groups(4, 4, seed=s), ranks.dp_rank, ranks.dp_size)) for s in (1, 2)]
        assert_marked(trainer, kind)
        trainer.save_checkpoint(Path(root) / f"again-{name}-{distributed}", {})
        seen[str(distributed)] = {"restored": restored, "metrics": metrics, "weights": trainer.export()}
        trainer.close()
    if rank == 0:
        torch.save(seen, Path(root) / f"{name}.pt")


@pytest.mark.parametrize(("kind", "name"), [("qwen3", "tp2 sp"), ("qwen3", "pp2 vpp2"), ("qwen3_moe", "tp2 ep2")])
def test_any_layout_goes_on_with_them(tmp_path: Path, kind: str, name: str) -> None:
    make_checkpoint(tmp_path / "model", kind, tied=False, **MODELS[kind][1], num_hidden_layers=4)
    for layout in ("one", name):
        ranks = LAYOUTS[layout]["num_ranks"]
        codes = spawn(trained_apart, str(tmp_path / "model"), str(tmp_path), layout, kind, ranks=ranks)
        assert codes == [0] * ranks
    one, split = (torch.load(tmp_path / f"{layout}.pt", weights_only=False) for layout in ("one", name))
    for kind_of_optimizer, expected in one.items():
        found = split[kind_of_optimizer]
        assert_equal(found["restored"], expected["restored"])
        assert any(tensor.dtype is torch.float32 for tensor in found["restored"].values())
        for ours, theirs in zip(found["metrics"], expected["metrics"], strict=True):
            assert ours["grad_norm"] == pytest.approx(
                theirs["grad_norm"], rel=0.05
            )  # sums of bfloat16 in another order
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.02)


def test_engines_get_them_in_the_type_of_the_checkpoint(build: Build, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", tied=False)
    file = tmp_path / "model" / "model.safetensors"
    wide = "model.norm.weight"
    tensors = {name: t.clone() if name == wide else t.bfloat16() for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    trainer = build(tmp_path / "model", model={"dtype": "bfloat16"}, learner={"fp32_parameters": DENSE})
    assert_equal(trainer.export(), load_file(file))
    trainer.step(make_groups(4, 4))
    exported = trainer.export()
    assert {name for name, tensor in exported.items() if tensor.dtype is torch.float32} == {wide}
    head = parameters(trainer)["0.output_layer.weight"].detach()
    assert torch.equal(exported["lm_head.weight"], head.bfloat16()) and not torch.equal(head, head.bfloat16().float())


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"fp32_parameters": ["lm_hed.weight"]},
            r'"lm_hed.weight" matches no weight of .*; did you mean "lm_head.weight"\?',
        ),
        (
            {"fp32_parameters": ["*.1.mlp.up_proj.*"]},
            r"marks model\.layers\.1\.mlp\.up_proj.* and not model\.layers\.0\..*",
        ),
        (
            {"fp32_parameters": ["lm_head.weight"], "lora_rank": 2},
            "with learner.lora_rank these weights stay as they are",
        ),
    ],
)
def test_what_cannot_be_kept_is_one_line(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    make_checkpoint(tmp_path / "model", tied=False)
    with pytest.raises(ConfigError, match=words) as refused:
        check_kept_types(make_config(tmp_path / "model", model={"dtype": "bfloat16"}, learner=sections))
    assert "\n" not in str(refused.value) and "learner.fp32_parameters" in str(refused.value)


def test_a_part_of_what_one_layer_computes_with_is_refused(build: Build, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "qwen2")
    with pytest.raises(ModelError, match=r"one layer computes with .*q_proj\.bias and with marked weights"):
        build(tmp_path / "model", model={"dtype": "bfloat16"}, learner={"fp32_parameters": ["*.q_proj.weight"]})
