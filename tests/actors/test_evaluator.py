"""The evaluator's choices, on a real bus: which versions it keeps, which it skips, and what a restart does not make again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from announcing import announce
from evaluations import EVAL, MINIMAL, snapshot
from fenced import Replaced, life

from actors.eval_engine import EvalEngine
from actors.evaluator import Candidate, Evaluator
from actors.runtime.context import ActorContext, wait_for
from actors.runtime.spec import ActorId, ActorSpec
from actors.runtime.watchdog import Watchdog
from bus import Bus
from bus.messages import Heartbeat, Metrics, Snapshot, Wait
from bus.waits import WaitKind
from miles_async.cli.load import parse
from miles_async.evaluation.pins import pins_in
from miles_async.monitor.diagnosis import Process, Sight, diagnose
from miles_async.runs.points import MADE, Point


def context(bus: Bus, run_dir: Path, model: Path, *overrides: str, incarnation: int = 1) -> ActorContext:
    config = parse(MINIMAL + EVAL, overrides)
    spec = ActorSpec("evaluator", "evaluator", 0, "", config, run_dir, str(model), "", "run", incarnation)
    return ActorContext(spec, bus)


def published(root: Path, version: int, incarnation: int = 1) -> Snapshot:
    path = snapshot(root, version)
    if incarnation != 1:
        path = path.rename(root / f"i{incarnation:04d}-v{version:08d}")
    return Snapshot(version=version, incarnation=incarnation, path=str(path))


async def told(bus: Bus) -> dict[int, dict[str, float]]:
    messages, _ = await bus.read("metrics", Metrics, "0")
    return {message.step: message.values for message in messages}


async def test_due_versions_wait_in_line_and_the_oldest_gives_way(bus: Bus, tmp_path: Path, digits_model: Path) -> None:
    evaluator = Evaluator(context(bus, tmp_path / "run", digits_model, "eval.keep_snapshots=2"))
    for version in range(13):
        await evaluator._hear(published(tmp_path / "s", version))
    assert [candidate.version for candidate in evaluator.waiting] == [8, 12]
    assert await told(bus) == {0: {"eval/skipped_busy": 1.0}, 4: {"eval/skipped_busy": 1.0}}
    assert {path.name[-2:] for path in pins_in(tmp_path / "s")} == {"08", "12"}
    again = Evaluator(context(bus, tmp_path / "run", digits_model, "eval.keep_snapshots=2", incarnation=2))
    for version in range(13):  # the stream, read by its successor
        await again._hear(Snapshot(version=version, incarnation=1, path=str(tmp_path / "s" / f"i0001-v{version:08d}")))
    assert [candidate.version for candidate in again.waiting] == [8, 12]


async def test_a_snapshot_that_is_gone_is_a_point_skipped_unless_it_is_the_checkpoint(
    bus: Bus, tmp_path: Path, digits_model: Path
) -> None:
    evaluator = Evaluator(context(bus, tmp_path / "run", digits_model))
    for version in (0, 4):
        await evaluator._hear(Snapshot(version=version, incarnation=1, path=str(tmp_path / f"i0001-v{version:08d}")))
    (first,) = evaluator.waiting
    assert (first.version, first.path, first.pin) == (0, digits_model, None)
    assert await told(bus) == {4: {"eval/skipped_gone": 1.0}}
    assert evaluator.record.points[4].outcome == "gone"


async def test_a_point_is_made_again_only_for_weights_that_were_trained_anew(
    bus: Bus, tmp_path: Path, digits_model: Path
) -> None:
    evaluator = Evaluator(context(bus, tmp_path / "run", digits_model))
    evaluator.record.add(Point(4, 1, MADE, 0.0))
    evaluator.record.add(Point(8, 1, MADE, 0.0))
    evaluator.record.add(Point(12, 1, "stopped", 0.0))
    await evaluator._hear(
        published(tmp_path / "s", 4, incarnation=2)
    )  # what the learner was resumed with: the same weights
    assert not evaluator.waiting
    await evaluator._hear(published(tmp_path / "s", 8, incarnation=2))  # trained anew from there
    assert [candidate.version for candidate in evaluator.waiting] == [8]
    other = Evaluator(context(bus, tmp_path / "run", digits_model))
    await other._hear(published(tmp_path / "s", 12, incarnation=3))  # its point was not made
    assert [candidate.version for candidate in other.waiting] == [12]


async def test_an_evaluator_that_has_been_replaced_adds_no_point(bus: Bus, tmp_path: Path, digits_model: Path) -> None:
    evaluator = Evaluator(context(bus, tmp_path / "run", digits_model))
    with life(1, 0), pytest.raises(Replaced):
        await evaluator._report(Candidate(4, 1, tmp_path, None), {}, 1.0)
    assert not evaluator.record.points and await told(bus) == {}


async def test_asked_to_finish_it_takes_the_last_version_too(bus: Bus, tmp_path: Path, digits_model: Path) -> None:
    evaluator = Evaluator(context(bus, tmp_path / "run", digits_model))
    for version in (4, 5, 6):
        await announce(bus, version, path=published(tmp_path / "s", version).path)
    evaluator.ctx.finish.set()
    await evaluator._follow()
    assert [candidate.version for candidate in evaluator.waiting] == [4, 6] and evaluator.all_read


def test_its_engines_are_the_configured_ones_with_their_own_flags_or_somebodys(
    bus: Bus, tmp_path: Path, digits_model: Path
) -> None:
    flags = 'eval.engine_args=["--mem-fraction-static", "0.2"]'
    own = EvalEngine(context(bus, tmp_path, digits_model, "engine.kind=sglang", flags))
    assert (own.engine.kind, own.engine.args) == ("sglang", ["--mem-fraction-static", "0.2"])
    theirs = EvalEngine(context(bus, tmp_path, digits_model, 'eval.urls=["http://h:3"]'))
    assert (theirs.engine.kind, theirs.engine.urls) == ("external", ["http://h:3"])


# what the run's watch makes of it


def beat(actor: str, role: str, *waits: Wait, time: float = 100.0) -> Heartbeat:
    return Heartbeat(actor=actor, role=role, incarnation=1, time=time, waits=waits)


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_an_evaluation_is_never_the_culprit(state: str) -> None:
    beats = [
        beat(
            "evaluator",
            "evaluator",
            wait_for(WaitKind.EVALUATION, ["eval_engine-0"], since=1.0, dataset="seen", version=4),
        ),
        beat("learner-0", "learner", wait_for(WaitKind.GROUPS, since=50.0, step=5)),
        beat("rollout-0", "rollout", wait_for(WaitKind.TICKET, since=60.0)),
        beat("dealer", "dealer"),
    ]
    processes = {
        "eval_engine-0": Process("pid 7", state),
        "evaluator": Process("pid 8", state),
        "dealer": Process("pid 9"),
    }
    found = diagnose(Sight(100.0, beats, processes, {"eval_engine-0": 90.0}))
    assert found.startswith("dealer (pid 9) is busy")


def test_a_long_evaluation_is_no_progress_and_its_start_no_excuse() -> None:
    clock, running = [0.0], [ActorId(name, 1) for name in ("learner-0", "eval_engine-0", "evaluator")]
    config = parse(MINIMAL + EVAL, ["run.watchdog_s=10"])
    dog = Watchdog(config, lambda: running, dict, lambda: None, clock=lambda: clock[0])

    def look(now: float) -> list[tuple[str, dict[str, Any]]]:
        clock[0] = now
        groups = wait_for(WaitKind.GROUPS, since=0.0, step=1)
        version = wait_for(WaitKind.EVALUATED_VERSION, ["eval_engine-0"], since=now, version=round(now))
        beats = [beat("learner-0", "learner", groups, time=now + 1)]
        beats += [beat("evaluator", "evaluator", version, time=now + 1)]
        dog.asked()
        dog.heard(beats, {}, "")
        dog.metrics(Metrics(actor="evaluator", step=0, time=now, values={"eval/seen": 0.5, "eval/version": 0.0}))
        return dog.tick()

    events = []
    for second in range(14):  # the engine of the evaluation has not been heard of all the time
        events += look(second)
    assert [kind for kind, _ in events] == ["stalled"]


def test_when_the_training_is_over_nothing_has_to_move() -> None:
    clock = [0.0]
    config = parse(MINIMAL + EVAL, ["run.watchdog_s=1", "run.watchdog_exit=true"])
    dog = Watchdog(config, list, dict, lambda: None, clock=lambda: clock[0])
    dog.rest()
    for clock[0] in range(100):
        assert not dog.tick()
    assert not dog.verdict
