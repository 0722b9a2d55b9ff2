"""A run that is replayed from its record has the losses and the weights that it had, whatever befell it; with another algorithm
it is another run on the same data."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from launching import (
    TINY,
    begin,
    environment,
    events,
    kill,
    left_behind,
    metrics,
    summary,
    wait_for_step,
    wait_until,
    write_config,
)
from safetensors.torch import load_file
from torch import equal
from warm_start import WarmPopen

from miles_async.comparing.compare import compare, read_all
from miles_async.monitor.inspect import InspectError, inspect
from miles_async.monitor.record_lines import read_transitions
from miles_async.recording.reader import RecordedRun
from miles_async.recording.samples import inspect_sample, show
from miles_async.simulation.calibrate import calibrate
from miles_async.simulation.directory import simulate_into

STEPS = 24
SAVED_AT = 10  # a step that the run has a checkpoint of


def replay(run: Path, into: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "miles_async.cli.app", "replay", str(run), "--run-dir", str(into), *extra]
    with WarmPopen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def steps(run_dir: Path) -> dict[int, dict[str, Any]]:
    """What each step reported, but for how long things took."""
    lines = [line for line in metrics(run_dir) if "raw_reward" in line["values"]]
    return {line["step"]: {k: v for k, v in line["values"].items() if not k.startswith("perf/")} for line in lines}


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = (load_file(run / "hf" / "model.safetensors") for run in (one, other))
    return mine.keys() == theirs.keys() and all(equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An asynchronous run on two engines, of which one died, with a learner and a rollout worker that died, too."""
    directory = tmp_path_factory.mktemp("replayed")
    config = write_config(
        directory,
        run=TINY["run"] | {"num_steps": STEPS},
        rollout=TINY["rollout"] | {"num_workers": 2},
        engine={"num_engines": 2},
        staleness={"max_lag": 4},
        checkpoint={"save_interval": SAVED_AT // 2, "save_hf": True, "keep": 4},
        record={"learner_log_probs": True},
    )
    process = begin(config, directory / "run")
    for number, victim in enumerate(["engine-1", "rollout-0", "learner-0"], 1):
        wait_for_step(directory / "run", 2 * number + 1, process)
        kill(directory / "run", victim)
        wait_until(lambda n=number: len(events(directory / "run", "restarted")) >= n, f"restart of {victim}", process)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return directory / "run"


def test_a_run_in_which_processes_died_is_replayed_to_the_bit(run: Path, tmp_path: Path) -> None:
    result = replay(run, tmp_path / "again")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert steps(tmp_path / "again") == steps(run) and len(steps(run)) == STEPS
    assert same_weights(tmp_path / "again", run)
    found = summary(tmp_path / "again")
    assert found["status"] == "finished" and found["balanced"]
    assert found["ledger"]["trained"] == STEPS * TINY["rollout"]["rollout_batch_size"]
    assert left_behind(tmp_path / "again") == []


def test_a_simulation_is_calibrated_on_what_the_run_has_left_and_stands_beside_it(run: Path, tmp_path: Path) -> None:
    config, about = calibrate(run, ["simulation.ideal=false"])
    assert (config.staleness.max_lag, config.engines.num_engines, config.rollout.num_workers) == (4, 2, 2)
    assert (
        config.engines.step_s + config.engines.step_request_s > 0 and config.learner.step_s + config.learner.token_s > 0
    )
    assert config.engines.update_s > 0 and 0 < config.lengths.mean <= 10 and config.lengths.prompt_mean > 0
    assert about["steps"] == STEPS and about["groups"] >= STEPS * TINY["rollout"]["rollout_batch_size"]
    simulate_into(config, tmp_path / "simulated", about)
    found = compare(read_all([run, tmp_path / "simulated"]))
    assert found["simulations"] == ["simulated"] and found["differences"] == {}
    for figures in found["figures"].values():
        assert figures["samples_per_s"] > 0 and sum(figures["lag_tokens"].values()) == pytest.approx(1.0, abs=1e-4)


def test_a_replay_begins_with_a_checkpoint_and_one_that_was_stopped_goes_on(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    first = replay(run, again, "--from", str(SAVED_AT), "--set", f"run.num_steps={SAVED_AT + 3}")
    assert first.returncode == 0, first.stderr
    result = replay(run, again, "--from", str(SAVED_AT))
    assert result.returncode == 0, result.stderr
    assert steps(again) == {step: values for step, values in steps(run).items() if step > SAVED_AT}
    assert same_weights(again, run)


def test_with_another_algorithm_it_says_that_the_data_are_another_policys(run: Path, tmp_path: Path) -> None:
    changed = ("--set", "algorithm.eps_clip=0.01", "--set", "run.num_steps=6")
    result = replay(run, tmp_path / "other", *changed)
    assert result.returncode == 0, result.stderr
    assert "algorithm.eps_clip = 0.01, and was 0.2" in result.stderr
    assert "the data are those of the run's own policy" in result.stderr
    mine, theirs = steps(tmp_path / "other"), steps(run)
    assert [mine[step]["raw_reward"] for step in range(1, 7)] == [theirs[step]["raw_reward"] for step in range(1, 7)]
    assert mine[6]["loss"] != theirs[6]["loss"]


PAIRS = """
from miles_async.staleness.elastic import Elastic


class Pairs(Elastic):
    def ticks(self, open_versions, version, batches):
        return batches == 2


def pairs(staleness, rollout):
    return Pairs(staleness.max_lag)
"""


def test_a_run_that_held_its_weights_and_lost_its_learner_in_between_is_replayed_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "holding.py").write_text(PAIRS)
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 12},
        staleness={"max_lag": 2, "policy": "holding.py:pairs"},
        checkpoint={"save_interval": 4, "save_hf": True},
    )
    process = begin(config, tmp_path / "run")
    wait_for_step(tmp_path / "run", 3, process)
    kill(tmp_path / "run", "learner-0")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    done = summary(tmp_path / "run")
    assert done["balanced"] and done["ledger"]["trained"] == (11 * 2 + 1) * 8  # the last step is not held
    assert done["max_token_lag"] <= 2

    result = replay(tmp_path / "run", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    assert steps(tmp_path / "again") == steps(tmp_path / "run") and len(steps(tmp_path / "run")) == 12
    assert steps(tmp_path / "run")[5]["batches"] == 2.0
    assert same_weights(tmp_path / "again", tmp_path / "run")


def refusal(run: Path, tmp_path: Path, *extra: str) -> str:
    result = replay(run, tmp_path / "refused", *extra)
    assert result.returncode == 2 and not (tmp_path / "refused").exists(), result.stderr
    (line,) = result.stderr.splitlines()
    return line


def test_what_cannot_be_replayed_is_one_line_before_anything_starts(run: Path, tmp_path: Path) -> None:
    assert "no launch is on record here" in refusal(tmp_path, tmp_path)
    assert f"step {STEPS + 1} is not on record" in refusal(run, tmp_path, "--set", f"run.num_steps={STEPS + 1}")
    assert "no checkpoint of step 3; those of its steps:" in refusal(run, tmp_path, "--from", "3")
    assert "nothing is left to train" in refusal(run, tmp_path, "--from", str(STEPS))
    other = refusal(run, tmp_path, "--set", "model.hf_checkpoint=builtin:words")
    assert 'record is of the model "builtin:digits"' in other and '"builtin:words" is another one' in other
    assert '"builtin:digits" with run.seed = 99 is another one' in refusal(run, tmp_path, "--set", "run.seed=99")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("hf", "*.sock", "redis"))
    segments = sorted((copy / "record").glob("rollout-*.seg"), key=lambda file: file.stat().st_size)
    bare = tmp_path / "bare"
    shutil.copytree(copy, bare)
    shutil.rmtree(bare / "record")
    assert 'no groups are kept there: the run had record.level = "off"' in refusal(bare, tmp_path)
    whole = segments[0].read_bytes()
    (size,) = struct.unpack_from("<I", whole, 4)
    torn = bytearray(whole)
    torn[20 + size] ^= 1  # the first byte of the first payloads, which no index looks at
    segments[0].write_bytes(torn)
    line = refusal(copy, tmp_path)
    assert re.search(r"step \d+, group [\d-]+: .* is damaged at byte 0: its groups do not have the checksum", line), (
        line
    )
    segments[0].write_bytes(whole)
    segments[-1].unlink()
    line = refusal(copy, tmp_path)
    assert "groups are not kept" in line and "of step" in line
    damaged = bytearray(segments[0].read_bytes())
    damaged[22] ^= 1
    segments[0].write_bytes(damaged)
    assert f"{segments[0].name} is damaged at byte 0" in refusal(copy, tmp_path)


def test_what_the_model_wrote_is_shown_token_by_token_and_agrees_with_the_record(run: Path) -> None:
    published = [line for line in read_transitions(run) if line.kind == "published"]
    line = published[len(published) // 2]
    assert 0 < line.begun.first_token_at <= line.generated <= line.graded <= line.time + 1  # of another clock
    found = inspect(run, "sample", line.groups[0], {"sample": inspect_sample})
    assert found["outcome"] == "published" and found["lease"] == line.by
    assert tuple(sample["reward"] for sample in found["samples"]) == line.rewards
    assert tuple(sample["length"] for sample in found["samples"]) == line.lengths
    assert found["ages"]["training"] >= found["ages"]["first_token"] >= 0 <= found["ages"]["submission"]
    assert f"ages in versions: submission {found['ages']['submission']}, first token" in show(found)
    one = inspect_sample(run, f"{line.groups[0]}/1")["samples"][0]
    assert "".join(token["text"] for token in one["tokens"]) == one["text"] == found["samples"][1]["text"]
    assert Counter(token["version"] for token in one["tokens"]) == dict(map(tuple, one["versions"]))
    with pytest.raises(InspectError, match=r'no sample "9" \(one of: 0, 1, 2, 3\)'):
        inspect_sample(run, f"{line.groups[0]}/9")
    with pytest.raises(InspectError, match='group "9-9-9" is not kept'):
        inspect_sample(run, "9-9-9")


def test_the_learners_log_probs_are_on_record_as_far_from_the_engines_as_the_step_reported(run: Path) -> None:
    record = RecordedRun(run)
    for step in (1, STEPS // 2, STEPS):
        apart: list[float] = []
        for group_id in record.steps[step].groups:
            for number in range(TINY["rollout"]["n_samples_per_prompt"]):
                tokens = inspect_sample(run, f"{group_id}/{number}")["samples"][0]["tokens"]
                assert all((token["learner_logprob"] is not None) == token["trained"] for token in tokens)
                apart += [abs(token["learner_logprob"] - token["logprob"]) for token in tokens if token["trained"]]
        reported = steps(run)[step]["train_rollout_logprob_abs_diff"]
        assert sum(apart) / len(apart) == pytest.approx(reported, rel=1e-3, abs=1e-6)
    assert "learner" in show(inspect_sample(run, f"{record.steps[STEPS].groups[0]}/0"))


def test_a_run_that_keeps_nothing_has_no_record_directory(tmp_path: Path) -> None:
    config = write_config(tmp_path, run=TINY["run"] | {"num_steps": 1}, record={"level": "off"})
    process = begin(config, tmp_path / "run")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert not (tmp_path / "run" / "record").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
