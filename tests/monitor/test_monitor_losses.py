"""Samples that are lost, groups that are dropped, attempts that fail: as metrics, on the terminal, in the summary."""

from __future__ import annotations

import io
import json
from pathlib import Path

from bus.messages import Event, ReadyGroup, Transition
from miles_async.config.schema import Data, Model, RunConfig
from miles_async.config.schema import Monitor as Settings
from miles_async.monitor.monitor import Monitor


def published(number: int) -> Transition:
    group = ReadyGroup(
        group_id=f"0-{number}-0",
        payload_key="key",
        oldest_version=0,
        newest_version=0,
        n_tokens=8,
        published=1.0,
        lengths=(2, 2, 2, 2),
        rewards=(0.0, 1.0, 0.0, 1.0),
    )
    return Transition(kind="published", group_ids=(f"0-{number}-0",), group=group)


def play(run_dir: Path, *, resumed: bool = False, lost: int = 10) -> tuple[str, dict[str, object]]:
    """A launch in which 40 samples are published and ``lost`` are not; what it says, and its summary."""
    said = io.StringIO()
    monitor = Monitor(said)
    settings = Settings(live="off", tensorboard=False)
    monitor.start(
        RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="x"), monitor=settings), run_dir, resumed
    )
    first = 100 if resumed else 1
    for number in range(10):
        monitor.on_transition(published(number), f"{first + number}-0")
    for number in range(lost):
        data = {"group": "0-1-0", "rollout": 1, "reason": "reward_error" if number else "reward_timeout", "detail": "x"}
        monitor.on_event(Event(actor="rollout-0", kind="sample_lost", time=1.0, data=data))
    for kind, reason in (("dropped", "zero_std"), ("dropped", "reward_error"), ("failed", "reward_error")):
        monitor.on_transition(Transition(kind=kind, group_ids=("0-9-0",), reason=reason), f"{first + 20}-0")
    monitor.on_transition(Transition(kind="batched", group_ids=("0-1-0",), step=1), f"{first + 30}-0")
    return said.getvalue(), monitor.finish("finished", {"dealt": 0})


def last(run_dir: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["values"] for line in lines if line["actor"] == "ledger" and "rollout/samples_lost" in line["values"]][
        -1
    ]


def test_lost_samples_are_counted_by_reason_said_above_one_in_a_hundred_and_in_the_summary(tmp_path: Path) -> None:
    said, summary = play(tmp_path)
    metrics = {
        "rollout/samples_made": 40.0,
        "rollout/samples_lost": 10.0,
        "rollout/samples_lost/reward_error": 9.0,
        "rollout/samples_lost/reward_timeout": 1.0,
        "drops/zero_std": 1.0,
        "errors/reward_error": 2.0,
    }
    assert last(tmp_path) == metrics
    assert "supervisor: samples_lost share=20.0% lost=10" in said
    assert said.count("samples_lost") == 1
    assert summary["samples_lost"] == {"reward_error": 9, "reward_timeout": 1}
    assert summary["troubles"] == ["10 samples were lost, 20.0% of all: reward_error 9, reward_timeout 1"]
    play(tmp_path, resumed=True)
    assert last(tmp_path) == {name: 2 * value for name, value in metrics.items()}


def test_a_run_that_loses_nothing_says_so_as_a_number_and_no_word(tmp_path: Path) -> None:
    said, summary = play(tmp_path, lost=0)
    assert last(tmp_path)["rollout/samples_lost"] == 0.0
    assert "samples_lost" not in said
    assert (summary["samples_lost"], summary["troubles"]) == ({}, [])


def tell(run_dir: Path, *events: tuple[str, dict[str, object]], resumed: bool = False) -> tuple[str, list[str]]:
    """What the terminal says of the events, and the summary's troubles."""
    settings = Settings(live="off", tensorboard=False)
    said = io.StringIO()
    monitor = Monitor(said)
    monitor.start(
        RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="x"), monitor=settings), run_dir, resumed
    )
    for kind, data in events:
        monitor.on_event(Event(actor="an actor", kind=kind, time=1.0, data=data))
    return said.getvalue(), monitor.finish("finished", {"dealt": 0})["troubles"]


def test_batches_that_train_nothing_are_said_ever_less_often_and_counted_in_the_summary(tmp_path: Path) -> None:
    empty = [("nothing_to_learn", {"step": step, "warning": "no token to train"}) for step in range(1, 31)]
    said, troubles = tell(tmp_path, *empty, ("steps_skipped", {"step": 31, "warning": "inf or nan"}))
    lines = [line for line in said.splitlines() if "nothing_to_learn" in line]
    assert ["step=1 " in lines[0], "step=10 " in lines[1], len(lines)] == [True, True, 2]
    assert lines[1].endswith("(10 times by now)") and said.count("steps_skipped step=31") == 1
    assert troubles == [
        "batches that changed less than they could: 1 with optimizer steps skipped for an inf or nan gradient, "
        "30 with optimizer steps without a token to train"
    ]


def test_an_engine_or_weights_that_cannot_be_trusted_are_said(tmp_path: Path) -> None:
    found: list[tuple[str, dict[str, object]]] = [
        ("weights_differ", {"engine": "engine-1", "version": 3, "cause": "model.norm.weight differs"}),
        ("engine_suspected", {"engine": "engine-1", "what": "lying", "why": "it serves\nversion 2, not 3"}),
        ("engine_trusted", {"engine": "engine-1", "what": "", "why": "its probe was answered"}),
        ("engine_suspicious", {"what": "it samples with a penalty"}),
        ("engine_back", {"engine": "engine-1"}),
        ("engine_hung", {"engine": "engine-2", "url": "http://a", "reason": "it has generated nothing for 30 s"}),
        ("group_not_recorded", {"group": "0-1-0", "cause": "No space left on device"}),
    ]
    refused = [("snapshot_refused", {"version": version, "cause": "its checksum is another"}) for version in range(10)]
    said, _ = tell(tmp_path, *found, *refused)  # type: ignore[list-item]
    lines = [line for line in said.splitlines() if line.startswith("an actor: ")]
    kinds = [line.removeprefix("an actor: ").split()[0] for line in lines]
    assert kinds == [*(kind for kind, _ in found), "snapshot_refused", "snapshot_refused"]
    assert lines[0] == "an actor: weights_differ engine=engine-1 version=3 cause=model.norm.weight differs"
    assert lines[1] == "an actor: engine_suspected engine=engine-1 what=lying why=it serves version 2, not 3"
    assert lines[-1].endswith("version=9 cause=its checksum is another (10 times by now)")


def test_a_point_of_an_evaluation_that_is_not_made_is_said_once_for_each_cause_and_in_the_summary(
    tmp_path: Path,
) -> None:
    error = {"reason": "error", "cause": "SystemExit: no eval (mine.py:2 in f)"}
    said, troubles = tell(
        tmp_path,
        *[("eval_skipped", {"version": version, **error}) for version in (0, 2, 4)],
        ("eval_skipped", {"version": 6, "reason": "busy", "cause": "2 later ones are open"}),
        *[("eval_log_failed", {"version": version, "cause": "KeyError: 'x' (mine.py:9 in g)"}) for version in (7, 8)],
    )
    line = "an actor: no point of the evaluation at version 0: error: SystemExit: no eval (mine.py:2 in f)"
    assert said.count(line) == said.count("SystemExit") == 1
    assert said.count("an actor: eval.eval_log_function at version 7: KeyError: 'x' (mine.py:9 in g)") == 1
    assert said.count("KeyError") == 1
    assert troubles == ["3 points of the evaluation were not made: error 3"]
    _, troubles = tell(
        tmp_path, ("evaluated", {"version": 2}), resumed=True
    )  # what a resumed run makes up for counts no more
    assert troubles == ["2 points of the evaluation were not made: error 2"]
