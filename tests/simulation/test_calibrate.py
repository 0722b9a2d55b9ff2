"""A simulation is calibrated on what was recorded: one that is fitted to a simulation's own record is that simulation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from miles_async.cli import app as cli
from miles_async.config.schema import ConfigError
from miles_async.monitor.record_lines import RecordError
from miles_async.simulation.calibrate import calibrate
from miles_async.simulation.directory import simulate_into, text_of
from miles_async.simulation.reading import parse

WORLD = """
[simulation]
num_steps = 60
transitions = true
ideal = false
[rollout]
rollout_batch_size = 16
n_samples_per_prompt = 4
rollout_max_response_len = 4000
num_workers = 2
max_groups_in_flight = 24
partial_rollout = false
[staleness]
policy = "drop"
max_lag = 3
[weights]
pause_mode = "in_place"
[lengths]
mean = 200
sigma = 0.6
alike = 0.5
prompt_mean = 100
[engines]
num_engines = 2
step_s = 0.02
step_request_s = 0.001
update_s = 0.3
[learner]
step_s = 1.0
token_s = 0.0002
[links]
admit_s = 0.05
batch_s = 0.04
offer_s = 0.03
"""


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli.app, ["simulate", *map(str, args)])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("simulations") / "recorded"
    simulate_into(parse(WORLD), directory)
    return directory


def test_a_simulations_own_record_gives_its_parameters_back(recorded: Path) -> None:
    config, about = calibrate(recorded)
    assert config.engines.step_s == pytest.approx(0.02, rel=0.05)
    assert config.engines.step_request_s == pytest.approx(0.001, rel=0.02)
    assert config.engines.update_s == pytest.approx(0.3) and config.engines.num_engines == 2
    assert config.learner.step_s == pytest.approx(1.0, abs=0.02)
    assert config.learner.token_s == pytest.approx(0.0002, rel=0.03)
    assert config.lengths.kind == "lognormal" and config.lengths.sigma == pytest.approx(0.6, rel=0.06)
    assert config.lengths.mean == pytest.approx(200, rel=0.06) and config.lengths.alike == pytest.approx(0.5, abs=0.08)
    assert config.links.batch_s == pytest.approx(0.04, abs=0.002) and config.links.offer_s == pytest.approx(
        0.03, abs=0.002
    )
    assert config.links.admit_s == pytest.approx(0.05, abs=0.01)
    assert (config.staleness, config.rollout) == (parse(WORLD).staleness, parse(WORLD).rollout)
    assert about["steps"] == 60 and about["error_of_training"] < 0.01


def test_another_policy_lag_and_fleet_are_predicted_from_it(recorded: Path, tmp_path: Path) -> None:
    held_out = (
        "staleness.policy=token_mask",
        "staleness.max_lag=1",
        "engines.num_engines=3",
        "simulation.num_steps=100",
    )
    truth = simulate_into(parse(WORLD, held_out), tmp_path / "truth")
    predicted = simulate_into(calibrate(recorded, held_out).config, tmp_path / "predicted")
    assert predicted["samples_per_s"] == pytest.approx(truth["samples_per_s"], rel=0.05)
    assert predicted["mean_token_lag"] == pytest.approx(truth["mean_token_lag"], abs=0.1)


def test_the_command_leaves_settings_that_can_be_edited_and_simulated_again(recorded: Path, tmp_path: Path) -> None:
    given = ("--from", recorded, "--set", "simulation.num_steps=20", "--run-dir", tmp_path / "fitted")
    found = invoke(*given, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    again = invoke(tmp_path / "fitted" / "sim.toml", "--run-dir", tmp_path / "again", "--json")
    assert json.loads(again.stdout) == {key: value for key, value in told.items() if key != "calibration"}
    files = ("sim.toml", "metrics.jsonl", "transitions.jsonl")
    own, other = ([(tmp_path / name / file).read_text() for file in files] for name in ("fitted", "again"))
    assert own[1:] == other[1:] and own[0] == f"# Calibrated on {recorded}.\n{other[0]}"
    shown = invoke(*given).stdout
    assert "calibrated on" in shown and "that run" in shown


def test_settings_are_written_so_that_they_are_read_back(tmp_path: Path) -> None:
    config = parse(WORLD, ["engines.cache_tokens=90000", "lengths.kind=empirical", "lengths.values=[3.0, 4.5]"])
    assert parse(text_of(config)) == config


def test_what_cannot_be_calibrated_on_is_one_line(recorded: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RecordError, match="no run here that has a record"):
        calibrate(empty)
    bare = tmp_path / "bare"
    simulate_into(parse(WORLD, ["simulation.transitions=false", "simulation.num_steps=2"]), bare)
    with pytest.raises(RecordError, match=r"no run here that has a record \(expected transitions.jsonl\)"):
        calibrate(bare)
    with pytest.raises(ConfigError, match=r'unknown key "engines.num_engine"'):
        calibrate(recorded, ["engines.num_engine=3"])
    for args, words in (
        (("--from", empty), "no run here"),
        ((), "one of the two"),
        (("a", "--from", "b"), "one of the two"),
    ):
        found = invoke(*args, "--run-dir", tmp_path / "out")
        assert found.exit_code == 2 and found.stdout == "" and found.stderr.count("\n") == 1, found.output
        assert words in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_whose_groups_are_not_kept_and_a_run_in_the_way_are_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "launches").mkdir(parents=True)
    (run / "config.toml").write_text('[model]\nhf_checkpoint = "m"\n[data]\nprompt_data = "p"\n')
    lines = (
        {"id": "1000-0", "kind": "published", "groups": ["0-0-0"], "lengths": [4]},
        {"id": "1000-1", "kind": "batched", "groups": ["0-0-0"], "step": 1},
    )
    (run / "transitions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    step = {"actor": "learner-0", "step": 1, "time": 2.0, "values": {"raw_reward": 0.5, "perf/train_time": 1.0}}
    (run / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    with pytest.raises(RecordError, match=r'record\.level = "off"'):
        calibrate(run)
    with pytest.raises(ConfigError, match=r"holds a run: give a simulation a directory of its own"):
        simulate_into(parse(WORLD), run)
