"""What the learner says of its steps: rewards that tell nothing apart, and functions of the user that are told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.learner_report import LearnerReport, epoch
from actors.runtime.compute import ComputeThread
from bus.messages import Batch, Event, Group, Sample
from miles_async.config.schema import Algorithm, Checkpoint, Data, Learner, Model, Rollout, RunConfig
from miles_async.monitor.announce import Announcer
from miles_async.train.idle_rewards import STEPS, IdleRewards
from miles_async.train.log_metrics import LogResultError, checked
from miles_async.train.reward_metrics import reward_metrics

FUNCTIONS = """
import asyncio
import numpy as np
calls = 0

def scalars(step, metrics):
    import torch
    return {"a": np.float32(0.5), "b": torch.tensor(2), "c": True, "d": np.int64(3), "e": float("nan")}
def true(step, metrics): return True
def text(step, metrics): return "done"
def words(step, metrics): return {"a": "0.5"}
def several(step, metrics): return {"a": np.zeros(3)}
def raises(step, metrics):
    metrics.clear()
    raise LookupError("no board")
def exits(step, metrics): raise SystemExit(3)
def canceled(step, metrics): raise asyncio.CancelledError
def stops(step, metrics): raise StopIteration
def saved(version, directory): raise OSError("the bucket is gone")
"""


class Context:
    """What a report needs of an actor's."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.published: list[dict[str, float]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    async def metrics(self, step: int, values: dict[str, float]) -> None:
        self.published.append(values)

    async def event(self, kind: str, **data: Any) -> None:
        self.events.append((kind, data))


def config(**sections: Any) -> RunConfig:
    return RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="x"), **sections)


async def reported(tmp_path: Path, name: str) -> Context:
    path = tmp_path / "board.py"
    path.write_text(FUNCTIONS)
    context = Context(
        config(
            learner=Learner(log_function=f"{path}:{name}"), checkpoint=Checkpoint(post_save_function=f"{path}:saved")
        )
    )
    report = LearnerReport(context)  # type: ignore[arg-type]
    batch = Batch(step=1, group_ids=("0-7-0", "1-3-0"), payload_keys=("a", "b"))
    async with ComputeThread("test") as compute:
        for _ in range(3):
            await report.step(batch, {"loss": 1.0}, compute)
        await report.saved(3, tmp_path, compute)
    return context


async def test_a_log_function_may_return_any_scalars(tmp_path: Path) -> None:
    context = await reported(tmp_path, "scalars")
    assert [kind for kind, _ in context.events] == ["hook_failed"]  # of the other one
    for values in context.published:
        assert all(type(value) is float for value in values.values())
        assert {k: v for k, v in values.items() if k != "e"} == {
            "loss": 1.0,
            "epoch": 1.0,
            "dp_size": 1.0,
            "a": 0.5,
            "b": 2.0,
            "c": 1.0,
            "d": 3.0,
        }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("true", "it must return at most 200 metrics {name: number}, or None, not a bool"),
        ("text", "it must return at most 200 metrics {name: number}, or None, not a str"),
        ("words", "a must be a number, not a str"),
        ("several", "a is no single number"),
        ("raises", "LookupError: no board"),
        ("exits", "SystemExit: 3"),
        ("canceled", "CancelledError"),
        ("stops", "StopIteration"),
    ],
)
async def test_a_log_or_post_save_function_that_fails_costs_a_line_and_not_the_run(
    tmp_path: Path, name: str, says: str
) -> None:
    context = await reported(tmp_path, name)
    assert context.published == [{"loss": 1.0, "epoch": 1.0, "dp_size": 1.0}] * 3
    (kind, data), (_, save) = context.events  # one for each cause, not for each step
    assert (kind, data["key"]) == ("hook_failed", "learner.log_function")
    assert says in data["cause"]
    assert (save["key"], save["cause"]) == ("checkpoint.post_save_function", "OSError: the bucket is gone")
    assert save["place"].endswith("in saved")
    said = Announcer().text(Event(actor="learner-0", kind="hook_failed", time=0.0, data=save))
    assert said.startswith("learner-0: checkpoint.post_save_function: OSError: the bucket is gone\n      File ")


def test_what_no_message_takes_is_refused_by_name() -> None:
    for found in ({"": 1}, {"x" * 151: 1}, {3: 1}, {"\ud83d": 1}, {str(i): i for i in range(201)}, {"a": 10**400}):
        with pytest.raises(LogResultError):
            checked(found)
    assert checked(None) == {}


class Alone:
    def concatenate(self, values: torch.Tensor) -> torch.Tensor:
        return values


class Two(Alone):
    """Of two ranks: the other one has had its say."""

    def __init__(self, other: list[Group]) -> None:
        class Keeps(Alone):
            def concatenate(keeps, values: torch.Tensor) -> torch.Tensor:
                self.other = values
                return values

        reward_metrics(other, Keeps())  # type: ignore[arg-type]

    def concatenate(self, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, self.other])


def group(number: int, rewards: list[float], parts: list[dict[str, float]] | None = None) -> Group:
    samples = tuple(
        Sample(
            index=i,
            tokens=b"",
            logprobs=b"",
            loss_mask=b"",
            versions=b"",
            reward=reward,
            finish_reason="stop",
            reward_parts=(parts or [{}] * len(rewards))[i],
        )
        for i, reward in enumerate(rewards)
    )
    return Group(group_id=f"0-{number}-0", prompt_tokens=b"", samples=samples, worker="w", started=0.0, finished=0.0)


def test_the_parts_of_a_reward_and_what_it_tells_apart_are_metrics_of_all_ranks() -> None:
    parts = [{"length": 1.0, "raw": 3.0}, {"length": 2.0, "raw": 5.0}]
    groups = [group(0, [0.0, 1.0], parts), group(1, [1.0, 1.0]), group(2, [2.0, 2.0])]
    metrics = reward_metrics(groups, Alone())  # type: ignore[arg-type]
    assert metrics["reward/length"] == 1.5
    assert "reward/raw" not in metrics
    assert metrics["zero_std_groups"] == 2.0
    assert metrics["reward_std"] == pytest.approx(np.std([3, 5], ddof=1) / 3)
    assert (metrics["reward_min"], metrics["reward_max"]) == (0.0, 2.0)
    spread = reward_metrics(groups[:1], Two(groups[1:]))  # type: ignore[arg-type]
    assert spread == pytest.approx(metrics)
    assert reward_metrics([], Two(groups)) == pytest.approx(metrics)  # type: ignore[arg-type]


def test_rewards_that_tell_nothing_apart_are_named_after_a_few_steps_and_once() -> None:
    constant = {"zero_std_groups": 8.0, "reward_min": 0.5, "reward_max": 0.5}
    idle = IdleRewards(config(rollout=Rollout(rollout_batch_size=8)))
    said = [idle.warning(constant) for _ in range(10)]
    assert [bool(text) for text in said] == [i == STEPS - 1 for i in range(10)]
    assert "every reward was 0.5" in said[STEPS - 1] and "every advantage is 0" in said[STEPS - 1]
    between = IdleRewards(config(rollout=Rollout(rollout_batch_size=8)))
    live = {"zero_std_groups": 7.0, "reward_min": 0.0, "reward_max": 1.0}
    assert not any(between.warning(live if i % STEPS == 0 else constant) for i in range(20))
    alike = {"zero_std_groups": 8.0, "reward_min": 0.0, "reward_max": 1.0}
    for algorithm, warned in (
        (Algorithm(), True),
        (Algorithm(advantage_estimator="ppo"), False),  # it compares over the batch
        (Algorithm(loss_type="sft_loss"), False),
    ):
        idle = IdleRewards(config(rollout=Rollout(rollout_batch_size=8), algorithm=algorithm))
        assert any([idle.warning(alike) for _ in range(STEPS)]) == warned


def test_the_epoch_is_that_of_the_last_prompt() -> None:
    assert epoch(("0-7-0", "2-3-0", "1-1-0")) == 2.0
    assert epoch(("eval", "")) == 0.0
