"""What the ranks of the learner's layouts run. Each writes what it saw to ``NAME-rank-N.pt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_experts import shape_of, with_foreign_experts
from safetensors.torch import load_file
from train_ranks import share, spawn
from train_support import assert_close, assert_equal, make_config, make_groups

from bus.messages import Group
from miles_async.config.layout import layout_of
from miles_async.train.ranks import Ranks
from miles_async.train.value_head import HEAD

STEPS = 3
MODEL = {"vocab_size": 24, "num_hidden_layers": 4, "head_dim": 16}
# what splits the model, and over how many ranks
DENSE: dict[str, dict[str, Any]] = {
    "dp2": {"num_ranks": 2},
    "tp2": {"num_ranks": 2, "tensor_parallel_size": 2, "sequence_parallel": False},
    "tp2 sp": {"num_ranks": 2, "tensor_parallel_size": 2},
    "pp2": {"num_ranks": 2, "pipeline_parallel_size": 2},
    "pp2 vpp2": {"num_ranks": 2, "pipeline_parallel_size": 2, "virtual_pipeline_size": 2},
    "cp2": {"num_ranks": 2, "context_parallel_size": 2},
    "tp2 pp2": {"num_ranks": 4, "tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    "tp2 cp2": {"num_ranks": 4, "tensor_parallel_size": 2, "context_parallel_size": 2},
    "dp2 tp2": {"num_ranks": 4, "tensor_parallel_size": 2},
    "dp2 pp2": {"num_ranks": 4, "pipeline_parallel_size": 2},
    "pp2 cp2": {"num_ranks": 4, "pipeline_parallel_size": 2, "context_parallel_size": 2},
}
MIXTURE = {"vocab_size": 24, "num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
LATENT = {  # its down-projections are of all processes
    **{"num_hidden_layers": 2, "vocab_size": 24, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    **{"q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1},
}
SPARSE: dict[str, dict[str, Any]] = {
    "ep2": {"num_ranks": 2, "expert_parallel_size": 2},
    "tp2 etp1": {"num_ranks": 2, "tensor_parallel_size": 2, "expert_tensor_parallel_size": 1},
    "tp2 ep2": {
        "num_ranks": 2,
        "tensor_parallel_size": 2,
        "expert_parallel_size": 2,
        "expert_tensor_parallel_size": 1,
    },
    "pp2 ep2": {"num_ranks": 4, "pipeline_parallel_size": 2, "expert_parallel_size": 2},
}
LAYOUTS = {"one": {"num_ranks": 1}, **DENSE, **SPARSE}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "grpo, entropy": {"algorithm": {"entropy_coef": 0.01}},
    "grpo, distributed optimizer": {
        "algorithm": {"loss_aggregation": "sample"},
        "learner": {"use_distributed_optimizer": True},
    },
    "gspo, padded": {"algorithm": {"advantage_estimator": "gspo"}, "learner": {"qkv_format": "bshd"}},
    "reference, kl": {
        "algorithm": {"use_kl_loss": True, "kl_loss_coef": 0.1, "kl_coef": 0.05, "old_log_probs": "recompute"}
    },
    "ppo, critic": {
        "algorithm": {"advantage_estimator": "ppo", "lambd": 0.95, "entropy_coef": 0.01},
        "critic": {"critic_lr": 1e-3, "critic_save": True},
    },
    "recomputed activations, log-probs in parts": {
        "algorithm": {"entropy_coef": 0.01},
        "learner": {"recompute_granularity": "full", "log_probs_chunk_size": 7},
    },
    "on-policy check": {"staleness": {"max_lag": 0}},
}
CRITIC: dict[str, dict[str, Any]] = {
    "algorithm": {"advantage_estimator": "ppo", "lambd": 0.95},
    "critic": {"critic_lr": 1e-3, "critic_save": True},
}
# of a mixture; the second one makes passes that the samples' versions tell, of which ranks have different ones
CASES_OF_MIXTURE: dict[str, dict[str, dict[str, Any]]] = {
    "grpo, distributed optimizer": CASES["grpo, distributed optimizer"],
    "old weights, critic": {
        "algorithm": {"advantage_estimator": "ppo", "keep_old_actor": True, "old_log_probs": "recompute"},
        "critic": {"critic_lr": 1e-3, "critic_save": True},
        "staleness": {"max_lag": 2},
        "learner": {
            **{"recompute_granularity": "full", "log_probs_chunk_size": 7},
            **{"moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.01},
        },
    },
}

# experts that the policy would not choose; the reference and the critic choose theirs
REPLAY = {"rollout": {"routing_replay": True}}
CASES_OF_REPLAY: dict[str, dict[str, dict[str, Any]]] = {
    "reference, recomputed activations": {
        "algorithm": {"use_kl_loss": True, "kl_loss_coef": 0.1, "old_log_probs": "recompute"},
        "learner": {"recompute_granularity": "full", "moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.01},
        **REPLAY,
    },
    "critic": {**CRITIC, **REPLAY},
}


def _of_matrix(sharded: bool) -> dict[str, dict[str, dict[str, Any]]]:
    kl = {"use_kl_loss": True, "kl_loss_type": "k3", "kl_loss_coef": 0.1, "entropy_coef": 0.01}
    learner = {"use_distributed_optimizer": sharded}
    kind = "distributed" if sharded else "plain"
    return {
        f"grpo, {kind} optimizer": {"algorithm": kl, "learner": learner},
        f"ppo, {kind} optimizer": {
            "algorithm": {**kl, "kl_loss_coef": 0.0, "advantage_estimator": "ppo", "lambd": 0.95, "kl_coef": 0.05},
            "critic": CRITIC["critic"],
            "learner": learner,
        },
    }


MATRIX_CASES = _of_matrix(False) | _of_matrix(True)


def batch(step: int, *, two_versions: bool) -> list[Group]:
    """Four groups; with ``two_versions`` each half has its own, which the weights had."""
    older = make_groups(4, 4, seed=step, version=max(0, step - 1) if two_versions else 0)
    return [*older[:2], *make_groups(4, 4, seed=step, version=step)[2:]] if two_versions else older


def train_cases(
    rank: int, model: str, root: str, name: str, layout: dict[str, Any], cases: dict[str, dict[str, dict[str, Any]]]
) -> None:
    """STEPS steps of each of ``cases`` in one layout."""
    from miles_async.train.trainer import MegatronTrainer

    seen: dict[str, Any] = {}
    for number, (case, sections) in enumerate(cases.items()):
        learner = {"max_tokens_per_micro_batch": 120, "grad_reduce_timeout_s": 60.0, **layout}
        config = make_config(model, **{**sections, "learner": {**learner, **sections.get("learner", {})}})
        split = layout_of(config.learner)
        ranks = Ranks(rank, config.learner.num_ranks, f"file://{root}/meeting-{name}-{number}", split)
        trainer = MegatronTrainer(config, model, ranks)
        if number == 0:
            specs, stream = trainer.stream()
            untrained = {tensor_name: tensor.clone() for tensor_name, tensor in stream}
            assert sorted(specs) == sorted((n, tensor.dtype, tensor.shape) for n, tensor in untrained.items())
            seen["untrained"] = untrained
        metrics = []
        for step in range(1 if config.staleness.max_lag == 0 or config.rollout.routing_replay else STEPS):
            groups = batch(step, two_versions="keep_old_actor" in sections.get("algorithm", {}))
            if config.rollout.routing_replay:
                groups = with_foreign_experts(groups, shape_of(model), seed=step)
            metrics.append(trainer.step(share(groups, ranks.dp_rank, ranks.dp_size)))
        critic = Path(root) / f"{name}-{number}-critic"
        trainer.save_critic(critic)
        log_probs = trainer.log_probs([torch.arange(9).numpy(), torch.arange(3).numpy()], 1.0)
        written = rank == 0 and critic.exists()
        seen[case] = {
            "metrics": metrics,
            "weights": trainer.export(),
            "log_probs": log_probs,
            "critic": load_file(critic / "model.safetensors") if written else {},
        }
        trainer.close()
    torch.save(seen, Path(root) / f"{name}-rank-{rank}.pt")


def trained(
    root: Path, model: Path, name: str, cases: dict[str, dict[str, dict[str, Any]]] = CASES
) -> list[dict[str, Any]]:
    """What each rank of that layout saw."""
    layout, plain = LAYOUTS[name], name.replace(" ", "-")
    ranks = layout["num_ranks"]
    codes = spawn(train_cases, str(model), str(root), plain, layout, cases, ranks=ranks)
    assert codes == [0] * ranks
    return [torch.load(root / f"{plain}-rank-{rank}.pt", weights_only=False) for rank in range(ranks)]


def compare(root: Path, expected: Any, name: str, cases: dict[str, dict[str, dict[str, Any]]] = CASES) -> None:
    """Train in layout ``name``, and hold all that its ranks saw against what one process saw."""
    ranks = trained(root, root / "model", name, cases)
    assert_equal(ranks[0]["untrained"], expected["untrained"])  # what is exported has the bits that were loaded
    checkpoint = load_file(root / "model" / "model.safetensors")
    assert_equal({key: tensor for key, tensor in ranks[0]["untrained"].items() if key in checkpoint}, checkpoint)
    assert not any(seen["untrained"] for seen in ranks[1:])
    for case in cases:
        of_case = [seen[case] for seen in ranks]
        for seen in of_case:
            assert seen["metrics"] == of_case[0]["metrics"], f"{case}: ranks disagree"
            for ours, theirs in zip(seen["log_probs"], expected[case]["log_probs"], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=2e-4, err_msg=case)
        for ours, theirs in zip(of_case[0]["metrics"], expected[case]["metrics"], strict=True):
            assert ours.keys() == theirs.keys()
            for metric, value in theirs.items():
                assert ours[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), f"{case}: {metric}"
        for part in ("weights", "critic"):
            assert of_case[0][part].keys() == expected[case][part].keys()
            assert_close(of_case[0][part], expected[case][part], atol=2e-4)
        assert not any(seen["weights"] for seen in of_case[1:])
    assert any(f"{HEAD}weight" in expected[case]["critic"] for case in cases)


NORMS, LOSSES = ("grad_norm", "critic-grad_norm"), ("loss", "pg_loss", "kl_loss", "critic-value_loss")


def apart(of_case: list[dict[str, Any]], expected: dict[str, Any]) -> dict[str, float]:
    """The largest differences between what the ranks of a layout saw of one case and what one process did. Ranks that disagree
    in a metric, and other names, are an AssertionError."""
    assert all(seen["metrics"] == of_case[0]["metrics"] for seen in of_case), "ranks disagree"
    found = {"loss": 0.0, "gradient norm": 0.0, "weights": 0.0}
    for ours, theirs in zip(of_case[0]["metrics"], expected["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        for what, names in (("loss", LOSSES), ("gradient norm", NORMS)):
            found[what] = max(found[what], *(abs(ours[name] - theirs[name]) for name in names if name in theirs))
    for part in ("weights", "critic"):
        ours, theirs = of_case[0][part], expected[part]
        assert ours.keys() == theirs.keys()
        found["weights"] = max(found["weights"], *(float((ours[n] - theirs[n]).abs().max()) for n in theirs), 0.0)
    return found


SAVED = ("one", "dp2", "tp2 sp", "pp2 vpp2", "cp2")  # layouts whose checkpoints each of them goes on from
OPTIMIZERS = {"plain": False, "distributed": True}


def saved_or_resumed(
    rank: int, model: str, root: str, name: str, layout: dict[str, Any], sources: tuple[str, ...]
) -> None:
    """Two steps and a checkpoint of each kind of optimizer; or, from each of ``sources``, two further steps."""
    from miles_async.train.trainer import MegatronTrainer

    seen: dict[str, Any] = {}
    for kind, sharded in OPTIMIZERS.items():
        learner = {"max_tokens_per_micro_batch": 120, "grad_reduce_timeout_s": 60.0, **layout}
        config = make_config(model, learner={**learner, "use_distributed_optimizer": sharded})
        resuming = "resume" if sources else "save"
        meeting = f"file://{root}/meeting-{name}-{kind}-{resuming}"
        ranks = Ranks(rank, config.learner.num_ranks, meeting, layout_of(config.learner))
        trainer = MegatronTrainer(config, model, ranks)

        def steps(trainer: MegatronTrainer = trainer, ranks: Ranks = ranks) -> list[dict[str, float]]:
            first = trainer.version
            batches = [make_groups(4, 4, seed=step) for step in (first, first + 1)]
            return [trainer.step(share(groups, ranks.dp_rank, ranks.dp_size)) for groups in batches]

        if not sources:
            steps()
            trainer.save_checkpoint(Path(root) / f"{name}-{kind}", {"by": name})
            seen[kind] = {"metrics": steps(), "weights": trainer.export()}
        for source in sources:
            extra = trainer.load_checkpoint(Path(root) / f"{source}-{kind}")
            seen[f"{kind} from {source}"] = {"extra": extra, "metrics": steps(), "weights": trainer.export()}
        trainer.close()
    if rank == 0:
        torch.save(seen, Path(root) / f"{name}-{'resumed' if sources else 'saved'}.pt")


def saved(root: Path, model: Path, name: str, sources: tuple[str, ...] = ()) -> dict[str, Any]:
    """What rank 0 of layout ``name`` saw."""
    layout = LAYOUTS[name]
    plain = name.replace(" ", "-")
    from_ = tuple(source.replace(" ", "-") for source in sources)
    codes = spawn(saved_or_resumed, str(model), str(root), plain, layout, from_, ranks=layout["num_ranks"])
    assert codes == [0] * layout["num_ranks"]
    found: dict[str, Any] = torch.load(root / f"{plain}-{'resumed' if sources else 'saved'}.pt", weights_only=False)
    return found
