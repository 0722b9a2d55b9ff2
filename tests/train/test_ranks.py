"""Several learner processes: two ranks train as one would, agree on refusals, and notice a dead peer."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from train_ranks import batches, killed_while_saving, sections, spawn, train_two_ranks, vocabulary_case
from train_support import make_checkpoint, make_config

from miles_async.train.distributed import RanksSilent
from miles_async.train.logprobs import token_logprobs
from miles_async.train.ranks import Ranks, alone
from miles_async.train.trainer import MegatronTrainer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path)
    return str(path)


@pytest.fixture(scope="module")
def two_ranks(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two spawned ranks saw; the second was killed at the end, on purpose."""
    root = tmp_path_factory.mktemp("ranks")
    codes = spawn(train_two_ranks, model, str(root))
    assert codes == [0, -signal.SIGKILL]
    seen = [torch.load(root / f"rank-{rank}.pt") for rank in (0, 1)]
    return {"root": root, "ranks": seen}


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "distributed-optimizer"])
def test_two_ranks_train_as_one(model: str, two_ranks: dict[str, Any], tmp_path: Path, sharded: bool):
    of_one = sections(sharded)
    of_one["learner"]["use_distributed_optimizer"] = False
    config = make_config(model, **of_one)
    one = MegatronTrainer(config, model, alone(f"file://{tmp_path}/meeting"))
    expected = [one.step(groups) for groups in batches()]
    weights = one.export()
    one.close()
    first, second = (seen[f"sharded-{sharded}"] for seen in two_ranks["ranks"])
    assert first["metrics"] == second["metrics"]
    assert second["weights"] == {}
    for ours, theirs in zip(first["metrics"], expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    for name, tensor in weights.items():
        torch.testing.assert_close(first["weights"][name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "distributed-optimizer"])
def test_a_checkpoint_of_two_ranks_restores_two_ranks_exactly_and_one(
    model: str, two_ranks: dict[str, Any], tmp_path: Path, sharded: bool
):
    seen = [rank[f"sharded-{sharded}"] for rank in two_ranks["ranks"]]
    assert [rank["resumed_alike"] for rank in seen] == [True, True]
    assert [rank["extra"] for rank in seen] == [{"sharded": sharded}] * 2
    config = make_config(model, **sections(sharded))
    one = MegatronTrainer(config, model, alone(f"file://{tmp_path}/meeting"))
    one.load_checkpoint(two_ranks["root"] / f"sharded-{sharded}")
    weights = one.export()
    one.close()
    assert all(torch.equal(tensor, seen[0]["weights"][name]) for name, tensor in weights.items())


def test_all_ranks_refuse_what_one_of_them_refuses(two_ranks: dict[str, Any]):
    first, second = (seen["refusals"] for seen in two_ranks["ranks"])
    assert first[0].startswith("BatchRefused") and "ranks [1]" in first[0]
    assert second[0].startswith("BatchError") and "prompt is empty" in second[0]
    assert first[1] == second[1] and first[1].startswith("LagExceeded") and "learner rank 1" in first[1]
    assert (first[2], second[2]) == ("", "")


def test_a_killed_peer_is_named(two_ranks: dict[str, Any]):
    message = two_ranks["ranks"][0]["peer_killed"]
    assert message.startswith("RanksSilent") and "learner ranks 1" in message


def test_a_peer_that_never_comes_is_named(model: str, tmp_path: Path):
    config = make_config(model, learner={"grad_reduce_timeout_s": 1.0})
    with pytest.raises(RanksSilent, match=r"learner rank 0 waited for .* learner ranks 1 .*= 1 s"):
        MegatronTrainer(config, model, Ranks(0, 2, f"file://{tmp_path}/meeting"))


def test_a_split_vocabulary_gives_the_softmax_of_the_whole(two_ranks: dict[str, Any]):
    logits, targets = vocabulary_case()
    whole = logits.double().requires_grad_()
    distribution = (whole / 0.7).log_softmax(-1)
    logprobs = distribution.gather(-1, targets[:, None])[:, 0]
    entropy = -(distribution.exp() * distribution).sum(-1)
    (logprobs.sum() + 0.3 * entropy.sum()).backward()
    assert whole.grad is not None
    for rank, seen in enumerate(two_ranks["ranks"]):
        split = seen["split_vocabulary"]
        torch.testing.assert_close(split["logprobs"].double(), logprobs.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(split["entropy"].double(), entropy.detach(), atol=1e-5, rtol=0)
        mine = whole.grad[:, rank * 5 : rank * 5 + 5]
        torch.testing.assert_close(split["gradient"].double(), mine, atol=1e-5, rtol=0)
    ours, ours_entropy = token_logprobs(logits, targets, temperature=0.7)
    torch.testing.assert_close(ours.double(), logprobs.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours_entropy.double(), entropy.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("moment", ["shards", "rename", "pointer"])
def test_a_kill_while_saving_leaves_the_previous_checkpoint(model: str, tmp_path: Path, moment: str):
    assert spawn(killed_while_saving, model, str(tmp_path), moment, ranks=1) == [-signal.SIGKILL]
    trainer = MegatronTrainer(make_config(model), model, alone(f"file://{tmp_path}/again"))
    try:
        assert trainer.load_checkpoint(tmp_path / "checkpoints") == {"position": 1}
        assert trainer.version == 1
        weights = torch.load(tmp_path / "weights.pt")
        assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.export().items())
        trainer.save_checkpoint(tmp_path / "checkpoints", {"position": 3})  # what the kill left is in nobody's way
        assert trainer.load_checkpoint(tmp_path / "checkpoints") == {"position": 3}
    finally:
        trainer.close()
