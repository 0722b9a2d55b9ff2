"""Evaluation in whole runs: exact versions beside a training that goes on; its processes killed in the middle; its deadline."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
from engine_support import make_scheduler, request, run
from launching import (
    TINY,
    begin,
    events,
    kill,
    launch,
    left_behind,
    metrics,
    recording_environment,
    summary,
    wait_until,
    write_config,
)

from miles_async.cli.load import load
from miles_async.evaluation.datasets import load_datasets
from miles_async.evaluation.metrics import EvalSample
from miles_async.evaluation.pins import pins_in
from miles_async.evaluation.settings import seed_of
from miles_async.models.builtin import EOS_ID
from miles_async.rewards.builtin_rewards import graded_match
from miles_async.rewards.sample import RewardSample
from miles_async.rollout.generate import sampling_params
from miles_async.runs.points import Point
from miles_async.text.tokenizer import Tokenizer

# the built-in evaluation in two halves; between them the learner has to make two more steps
HALVES = """
import asyncio, json
from miles_async.evaluation.metrics import dataset_metrics

async def in_halves(dataset, generate, grade):
    half, rewards, version = len(dataset.prompts) // 2, [], 0
    for number, prompt in enumerate(dataset.prompts):
        samples = await generate(prompt)
        rewards += await grade(prompt, samples)
        version = int.from_bytes(samples[0].versions[:4], "little")
        while number == half and version < LAST and step() < version + 2:
            await asyncio.sleep(0.05)
    return {dataset.name: sum(rewards) / len(rewards)}

def step():
    lines = open(RECORD).read().splitlines()[:-1]
    return max((json.loads(line)["step"] for line in lines if '"learner-0"' in line), default=0)

def log(version, results):
    with open(RECORD + ".log", "a") as file:
        print(version, *results, file=file)
"""


def points(run_dir: Path) -> list[Point]:
    lines = (run_dir / "eval" / "points.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Point) for line in lines]


def samples(run_dir: Path, name: str, version: int) -> list[EvalSample]:
    lines = (run_dir / "eval" / f"{name}-{version}.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=EvalSample) for line in lines]


def pins_left(run_dir: Path) -> list[Path]:
    return pins_in(run_dir / "snapshots")


def in_a_fresh_engine(config_file: Path, run_dir: Path, version: int) -> list[tuple[str, float]]:
    """Response and reward of every sample of the dataset "seen", from an engine that has loaded the kept weights."""
    kept = run_dir / "kept" / str(version)
    tokenizer = Tokenizer(kept)
    config = load(config_file)
    (data,) = load_datasets(config, tokenizer)
    found = []
    scheduler = make_scheduler(kept)
    for prompt in data.prompts:
        first = seed_of(config.run.seed, data.name, prompt.index, data.n_samples)
        made = [
            request(
                prompt.tokens.tolist(),
                rid=f"{prompt.index}.{i}",
                eos=EOS_ID,
                **sampling_params(data.config.rollout, first + i),
            )
            for i in range(data.n_samples)
        ]
        for one in run(scheduler, made):
            text = tokenizer.decode(one.output)
            ended = one.finish["type"] if one.finish else ""
            sample = RewardSample(prompt=prompt.text, response=text, label=prompt.label, finish_reason=ended)
            found.append((text, graded_match(sample)))
    return found


def test_points_are_of_exactly_the_due_versions_while_the_training_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    constants = f"LAST = 8\nRECORD = {str(run_dir / 'metrics.jsonl')!r}\n"
    (tmp_path / "halves.py").write_text(constants + HALVES)
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 8},
        weights={"snapshot_dir": str(run_dir / "snapshots")},
        topology={"learner": "keeping_learner.KeepingLearner"},
        eval={
            "eval_interval": 4,
            "keep_snapshots": 3,
            "eval_function": "halves.in_halves",
            "eval_log_function": "halves.log",
        },
        **{"eval.datasets.seen": {"prompt_data": "builtin:repeat@[:8]", "n_samples_per_eval_prompt": 2}},
    )
    result = launch(config, run_dir, env=recording_environment())
    assert result.returncode == 0, result.stderr
    made = points(run_dir)
    assert [(point.version, point.outcome) for point in made] == [(0, "made"), (4, "made"), (8, "made")]
    reported = {
        line["step"]: line["values"] for line in metrics(run_dir, "evaluator") if "eval/version" in line["values"]
    }
    assert {step: values["eval/version"] for step, values in reported.items()} == {0: 0, 4: 4, 8: 8}
    # the learner made at least two steps in the middle of each point, and it was all of one version nevertheless
    assert [reported[step]["eval/lag_steps"] >= 2 for step in (0, 4)] == [True, True]
    assert reported[8]["eval/lag_steps"] == 0
    for version in (0, 4, 8):
        record = samples(run_dir, "seen", version)
        assert [(s.response, s.reward) for s in record] == in_a_fresh_engine(config, run_dir, version)
        mean = sum(s.reward or 0.0 for s in record) / len(record)
        assert abs(next(p.metrics["seen"] for p in made if p.version == version) - mean) < 1e-9
    found = summary(run_dir)
    assert list(found["eval"]["seen"]) == ["0", "4", "8"] and found["max_token_lag"] <= 2 and found["balanced"]
    assert (run_dir / "metrics.jsonl.log").read_text() == "0 seen\n4 seen\n8 seen\n"
    assert pins_left(run_dir) == [] and left_behind(run_dir) == []


HELD = """
import asyncio, pathlib
DIRECTORY = pathlib.Path(__file__).parent

async def held(dataset, generate, grade):
    first = dataset.prompts[0]
    rewards = await grade(first, await generate(first))
    (DIRECTORY / "begun").touch()
    while not (DIRECTORY / "go").exists():
        await asyncio.sleep(0.02)
    second = dataset.prompts[1]
    rewards += await grade(second, await generate(second))  # the engine may have been replaced meanwhile
    return {dataset.name: sum(rewards) / 2}
"""


def test_a_killed_evaluator_and_a_killed_engine_cost_no_point(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    run_dir = tmp_path / "run"
    config = write_config(
        tmp_path,
        weights={"snapshot_dir": str(run_dir / "snapshots")},
        eval={"eval_interval": 4, "eval_function": "held.held"},
        **{"eval.datasets.seen": {"prompt_data": "builtin:repeat@[:2]"}},
    )
    process = begin(config, run_dir)
    wait_until((tmp_path / "begun").exists, "point under way", process)
    kill(run_dir, "evaluator")
    (tmp_path / "begun").unlink()
    wait_until((tmp_path / "begun").exists, "second attempt at the point", process)
    kill(run_dir, "eval_engine-0")
    wait_until(lambda: len(restarted(run_dir)) == 2, "replaced engine", process)
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert restarted(run_dir) == ["evaluator", "eval_engine-0"]
    assert [(point.version, point.outcome) for point in points(run_dir)] == [(0, "made"), (4, "made")]
    assert {len(samples(run_dir, "seen", version)) for version in (0, 4)} == {2}
    found = summary(run_dir)
    assert (found["status"], found["steps"], found["balanced"]) == ("finished", 4, True)
    assert "stalled" not in found["events"] and pins_left(run_dir) == [] and left_behind(run_dir) == []


def restarted(run_dir: Path) -> list[str]:
    return [event["data"]["actor"] for event in events(run_dir, "restarted")]


def test_an_engine_that_is_never_there_costs_the_training_nothing_and_its_end_no_more_than_told(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 2},
        weights={"snapshot_dir": str(run_dir / "snapshots")},
        eval={"eval_interval": 1, "urls": [url], "final_timeout_s": 0.5},
        **{"eval.datasets.seen": {"prompt_data": "builtin:repeat"}},
    )
    result = launch(config, run_dir)
    assert result.returncode == 0, result.stderr
    # version 0 is being made, 2 waits for it; then the end
    assert {(p.version, p.outcome) for p in points(run_dir)} == {(0, "stopped"), (1, "busy"), (2, "stopped")}
    skipped = {line["step"]: line["values"] for line in metrics(run_dir, "evaluator")}
    assert skipped == {v: {f"eval/skipped_{why}": 1.0} for v, why in ((0, "stopped"), (1, "busy"), (2, "stopped"))}
    found = summary(run_dir)
    assert (found["status"], found["steps"], found["events"]["evaluation_too_late"]) == ("finished", 2, 1)
    assert found["eval"] == {"seen": {}} and pins_left(run_dir) == [] and left_behind(run_dir) == []
