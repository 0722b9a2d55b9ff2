"""The size of the learner's world: it waits for room as long as it may, shrinks then, and grows behind a checkpoint; and what
fewer ranks make of a run is what they would have made where a person had resumed it with them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from launching import events, launch, metrics, recording_environment, write_config
from recorded_runs import check_that_nothing_is_lost_or_twice
from recording_learner import LearnerWhoseSecondRankIsLost

from actors.runtime import world
from actors.runtime.placement.base import Room
from actors.runtime.placement.local import LocalPlacement
from actors.runtime.supervisor import OK, Supervisor
from actors.runtime.tasks import end
from actors.runtime.world import World
from miles_async.cli.load import load
from miles_async.config.schema import (
    Data,
    ElasticLearner,
    Learner,
    Model,
    Placement,
    Rollout,
    Run,
    RunConfig,
)
from miles_async.monitor import Monitor
from miles_async.train import checkpoint
from miles_async.train.checkpoint import LearnerState

WAIT_S = 60.0
CONFIG = RunConfig(
    model=Model(hf_checkpoint="none"),
    data=Data(prompt_data="none"),
    run=Run(num_steps=100),
    rollout=Rollout(rollout_batch_size=8),
    learner=Learner(num_ranks=4),
    placement=Placement(elastic_learner=ElasticLearner(min_ranks=2, wait_s=WAIT_S)),
)


class Cluster:
    """What a placement says of room, and what was asked of it; the learner's ranks, and when they were ended."""

    def __init__(self, *, kept: int, waiting: dict[str, float] | None = None) -> None:
        self.seen = Room(kept=kept, waiting=waiting or {}, lost=("10.0.0.2",))
        self.ranks, self.looks, self.arranged = 4, 0, 0
        self.ended: list[int] = []
        self.then: Callable[[], None] = lambda: None  # what happens between two looks

    async def room(self, role: str) -> Room:
        self.looks += 1
        self.then()
        return self.seen

    async def rearrange(self, role: str) -> None:
        self.arranged += 1

    def members(self, role: str) -> list[Any]:
        return list(range(self.ranks))

    def running(self, roles: Iterable[str] = ()) -> list[str]:
        return ["learner-0"] * (not self.ended)

    def terminate(self, spec: Any, *, by_force: bool) -> None:
        self.ended.append(spec)


class Story:
    """A world on a cluster, its clock, and what it tells."""

    def __init__(self, run_dir: Path, cluster: Cluster, config: RunConfig = CONFIG) -> None:
        self.now, self.told, self.cluster = 0.0, [], cluster  # type: ignore[var-annotated]
        placement: Any = cluster
        self.world = World(config, run_dir, placement, self._tell, lambda: self.now)

    def _tell(self, kind: str, **data: Any) -> None:
        self.told.append((kind, data))

    def pass_time(self) -> None:
        self.now += 1.0

    async def watched(self, looks: int) -> None:
        """So many looks, or until the world was ended."""
        wanted = self.cluster.looks + looks
        ranks: Any = self.cluster
        watching = asyncio.create_task(self.world.watch(ranks))
        async with asyncio.timeout(30):
            while self.cluster.looks < wanted and not self.cluster.ended:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await end([watching])


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "LOOK_S", 0.0)


def saved(run_dir: Path, version: int) -> None:
    """A checkpoint of that version."""
    writing = checkpoint.begin(run_dir / "checkpoints", version)
    (writing / "shard").write_bytes(bytes(10))
    checkpoint.commit(run_dir / "checkpoints", writing, LearnerState(version, {}), keep=2)


async def test_where_no_room_comes_a_smaller_world_goes_on_after_the_wait_and_says_from_where(tmp_path: Path) -> None:
    saved(tmp_path, 12)
    story = Story(tmp_path, cluster := Cluster(kept=3))
    cluster.then = story.pass_time
    assert story.world.fallen("learner-2: its machine was lost: 10.0.0.2") == ""
    assert await story.world.size(4) == 2  # three do not come out even on eight groups
    assert story.now >= WAIT_S and cluster.arranged == 1
    (waits, why), (resized, what) = story.told
    assert (waits, resized) == ("learner_waits_for_room", "learner_resized")
    assert why == {"ranks": 4, "room_for": 3, "lost": ("10.0.0.2",), "wait_s": WAIT_S}
    cause = "learner-2: its machine was lost: 10.0.0.2"
    assert what == {"was": 4, "ranks": 2, "dp_size": 2, "from_step": 12, "lost": ("10.0.0.2",), "cause": cause}


async def test_room_that_comes_in_time_is_taken_and_a_world_with_too_little_for_any_is_as_it_was(
    tmp_path: Path,
) -> None:
    story = Story(tmp_path, cluster := Cluster(kept=3))

    def room_comes() -> None:
        if cluster.looks == 3:
            cluster.seen = Room(kept=4)

    cluster.then = room_comes
    assert await story.world.size(4) == 4
    assert [kind for kind, _ in story.told] == ["learner_waits_for_room"]
    story = Story(tmp_path, cluster := Cluster(kept=1))
    cluster.then = story.pass_time
    assert await story.world.size(4) == 4  # they wait for their places as any actor does
    assert [kind for kind, _ in story.told] == ["learner_waits_for_room"]


async def test_a_world_whose_ranks_have_had_no_place_for_the_wait_is_ended_and_waits_no_second_time(
    tmp_path: Path,
) -> None:
    story = Story(tmp_path, cluster := Cluster(kept=2, waiting={"learner-2": WAIT_S - 1, "learner-3": WAIT_S - 1}))
    await story.watched(3)
    assert cluster.ended == []
    cluster.seen = cluster.seen._replace(waiting={"learner-2": WAIT_S, "learner-3": WAIT_S})
    await story.watched(3)
    assert cluster.ended == [0, 1, 2, 3]
    assert story.world.fallen("killed") == "learner-2, learner-3 had no place for 60 s"
    assert story.world.fallen("killed") == ""  # of which it is asked once
    assert await story.world.size(4) == 2 and story.now == 0.0


async def test_who_has_no_place_is_left_to_wait_where_no_smaller_world_has_room(tmp_path: Path) -> None:
    story = Story(tmp_path, cluster := Cluster(kept=1, waiting={"learner-1": 2 * WAIT_S}))
    await story.watched(3)
    assert cluster.ended == []


async def test_a_smaller_world_grows_behind_the_next_checkpoint_and_a_whole_one_is_left_alone(tmp_path: Path) -> None:
    saved(tmp_path, 12)
    story = Story(tmp_path, cluster := Cluster(kept=2))
    cluster.then = story.pass_time
    cluster.ranks = await story.world.size(4)
    saved(tmp_path, 16)
    await story.watched(3)
    assert cluster.ended == []  # there is no room
    cluster.seen = Room(kept=4)
    await story.watched(3)
    assert cluster.ended == []  # much would have to be trained again
    saved(tmp_path, 20)
    await story.watched(3)
    assert cluster.ended == [0, 1] and story.world.fallen("killed") == "there is room for 4 ranks"
    assert await story.world.size(2) == 4 and story.told[-1][1]["from_step"] == 20
    cluster.ended.clear()
    cluster.ranks = 4
    saved(tmp_path, 24)
    await story.watched(3)
    assert cluster.ended == []


async def test_a_world_that_is_not_elastic_asks_nobody(tmp_path: Path) -> None:
    story = Story(tmp_path, cluster := Cluster(kept=0), RunConfig(model=CONFIG.model, data=CONFIG.data))
    assert await story.world.size(4) == 4
    await story.world.watch(cluster)  # type: ignore[arg-type]
    assert cluster.looks == 0


class RoomForOne(LocalPlacement):
    """One rank of the learner has a place there once another one was lost."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir

    async def room(self, role: str) -> Room:
        return Room(kept=1, lost=("10.0.0.2",)) if (self.run_dir / "lost").exists() else Room(kept=2)


STEPS = LearnerWhoseSecondRankIsLost.LOST_AT
LOST: dict[str, dict[str, Any]] = {
    "run": {"num_steps": STEPS, "max_restarts": 0, "stop_timeout_s": 20.0, "seed": 3},
    "staleness": {"max_lag": 0},
    "rollout": {"rollout_batch_size": 8, "n_samples_per_prompt": 4, "rollout_max_response_len": 10, "num_workers": 1},
    "engine": {"num_engines": 1},
    "learner": {"lr": 1e-3, "num_ranks": 2},
    # an engine's log-probs depend on what it computes at once, in their last bits; the learner's own do not
    "algorithm": {"correction": "none", "old_log_probs": "recompute"},
    "checkpoint": {"save_interval": 2, "save_hf": True},
    "topology": {"learner": "recording_learner.LearnerWhoseSecondRankIsLost"},
}


def learnt(run_dir: Path) -> dict[int, tuple[float, float]]:
    """What each step came to, the last time that it was trained."""
    values = ((line["step"], line["values"]) for line in metrics(run_dir) if "loss" in line["values"])
    return {step: (found["loss"], found["grad_norm"]) for step, found in values}


@pytest.mark.usefixtures("as_a_launch")
def test_a_learner_that_goes_on_with_fewer_ranks_makes_the_weights_of_one_that_a_person_resumes_with_them(
    tmp_path: Path,
) -> None:
    for name in ("by-itself", "by-hand"):
        (tmp_path / name).mkdir()
    elastic = {"elastic_learner.min_ranks": 1, "elastic_learner.wait_s": 0.05}
    run = LOST | {"run": LOST["run"] | {"max_restarts": 2}, "placement": elastic}
    config = load(write_config(tmp_path / "by-itself", **run), check=False)  # as if it were on a cluster
    itself, hand = tmp_path / "by-itself" / "run", tmp_path / "by-hand" / "run"
    assert Supervisor(config, itself, Monitor(stream=io.StringIO()), RoomForOne(itself)).run() == OK
    [change] = [event["data"] for event in events(itself, "learner_resized")]
    assert (change["was"], change["ranks"], change["from_step"], change["lost"]) == (2, 1, 2, ["10.0.0.2"])
    check_that_nothing_is_lost_or_twice(itself, STEPS, 8, 0)

    resumed = write_config(tmp_path / "by-hand", **LOST)
    assert launch(resumed, hand, env=recording_environment()).returncode == 1  # a rank was lost
    asked = ("--set", "learner.num_ranks=1")
    assert launch(resumed, hand, *asked, env=recording_environment()).returncode == OK
    assert learnt(itself) == learnt(hand) and len(learnt(itself)) == STEPS
    weights = [run_dir / "hf" / "model.safetensors" for run_dir in (itself, hand)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
