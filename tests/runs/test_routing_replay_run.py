"""A run of a mixture of experts whose engines return the experts of each token: what is trained on has them, and the learner's
log-probs are then as near to the engines' as a dense model's."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from engine_support import hf_routes
from launching import RECORDING, TINY, launch, metrics, recording_environment, summary, trained_groups, write_config
from mixture_models import EXPERTS, LAYERS, TOP_K, make_mixture, make_undecided_mixture

from bus.codec import MASK, TOKENS, VERSIONS, unpack
from miles_async.groups.routes import RouteShape
from miles_async.groups.sound import prompt_of

SHAPE = RouteShape(LAYERS, TOP_K, EXPERTS)


def test_what_is_trained_on_has_the_experts_that_the_engines_chose(tmp_path: Path) -> None:
    model = make_mixture(tmp_path / "model", seed=5)
    config = write_config(
        tmp_path,
        model=TINY["model"] | {"hf_checkpoint": str(model)},
        run=TINY["run"] | {"num_steps": 5},
        rollout=TINY["rollout"] | {"routing_replay": True},
        staleness={"max_lag": 2},
        topology=RECORDING,
    )
    run_dir = tmp_path / "run"
    result = launch(config, run_dir, env=recording_environment())
    assert result.returncode == 0, result.stderr
    found = summary(run_dir)
    assert found["status"] == "finished" and found["balanced"] and not found["ledger"]["dropped"]
    groups = [group for step in trained_groups(run_dir).values() for group in step]
    of_the_checkpoint = 0
    for group, sample in ((one, sample) for one in groups for sample in one.samples):
        tokens = unpack(prompt_of(group, sample) + sample.tokens, TOKENS).tolist()
        routes = SHAPE.unpack(sample.routes)
        assert len(routes) == len(tokens) - 1
        assert unpack(sample.loss_mask, MASK).all()  # the embedded engine keeps routes through retractions
        if not unpack(sample.versions, VERSIONS).any():
            of_the_checkpoint += 1
            assert np.sort(routes).tolist() == np.sort(hf_routes(model, tokens, TOP_K)).tolist()
    assert of_the_checkpoint >= 8 * 4
    shares = [
        line["values"]["rollout/unpaired_routes"]
        for worker in ("rollout-0", "rollout-1")
        for line in metrics(run_dir, worker)
        if "rollout/unpaired_routes" in line["values"]
    ]
    assert shares and not any(shares)
    differences = [line["values"].get("on_policy_logprob_abs_diff", 0.0) for line in metrics(run_dir)]
    assert max(differences) < 1e-5


def mismatch(directory: Path, model: str | Path, **rollout: Any) -> float:
    """How far log-probs of the learner's own version are from the engines', in bfloat16, in a run that hardly learns."""
    directory.mkdir()
    config = write_config(
        directory,
        model=TINY["model"] | {"hf_checkpoint": str(model), "dtype": "bfloat16"},
        run=TINY["run"] | {"num_steps": 3},
        rollout=TINY["rollout"] | {"n_samples_per_prompt": 8} | rollout,
        learner={"lr": 1e-6},
        staleness={"max_lag": 0},
    )
    result = launch(config, directory / "run")
    assert result.returncode == 0, result.stderr
    return fmean(line["values"]["on_policy_logprob_abs_diff"] for line in metrics(directory / "run"))


def test_with_the_engines_experts_the_mismatch_is_a_dense_models_and_without_them_it_is_larger(tmp_path: Path) -> None:
    model = make_undecided_mixture(tmp_path / "model")
    dense = mismatch(tmp_path / "dense", "builtin:digits")
    replayed = mismatch(tmp_path / "replayed", model, routing_replay=True)
    own = mismatch(tmp_path / "own", model)
    assert replayed < 1.25 * dense, (dense, replayed, own)
    assert own > 1.35 * replayed, (dense, replayed, own)
