"""``miles-async simulate``: figures, one JSON document, one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from simulations import PLAIN
from typer.testing import CliRunner, Result

from miles_async.cli import app as cli
from miles_async.config.schema import ConfigError
from miles_async.simulation.reading import parse, unused
from miles_async.simulation.result import result
from miles_async.simulation.show import rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulation.toml"


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli.app, ["simulate", *map(str, args)])


def test_the_example_runs_and_its_table_says_what_the_json_says() -> None:
    asked = ("--set", "simulation.num_steps=20")
    told, shown = invoke(EXAMPLE, *asked, "--json"), invoke(EXAMPLE, *asked)
    found = json.loads(told.stdout)
    assert told.exit_code == shown.exit_code == 0
    assert found == result(parse(EXAMPLE.read_text(), ["simulation.num_steps=20"]))
    assert found["balanced"] and found["steps"] == 20 and 0 < found["share_of_ideal"] <= 1.01
    for name, value in rows(found):
        assert name in shown.stdout and value.split()[0] in shown.stdout


@pytest.mark.parametrize(
    "override, words",
    [
        ("engines.num_engine=3", 'unknown key "engines.num_engine"; did you mean "engines.num_engines"?'),
        ("lengths.kind=lognormel", 'did you mean "lognormal"?'),
        ("learner.token_s=-1", "learner.token_s = -1: expected a number >= 0"),
        ("lengths.kind=empirical", 'lengths.values belongs to lengths.kind = "empirical"'),
        ("engines.measured_running=[1, 2]", "2 numbers, engines.measured_tokens_per_s 0"),
        ("engines.slow=[1.0, 2.0, 3.0]", "at most engines.num_engines numbers"),
        ("engines.step_s=0", "a token would take no time"),
        ("engines.cache_tokens=1000", "is less than the longest response"),
        ("learner.replicas=3", "must be a multiple of learner.replicas"),
        ("simulation.warmup_steps=40", "must be below simulation.num_steps = 40"),
        ("weights.update_interval=9", "at most 3"),
        ("rollout.over_sampling_batch_size=2", "must be at least rollout.rollout_batch_size = 4"),
        ("rollout.adaptive_in_flight=true", "a simulation has no such thing"),
        ("staleness.policy=fivo", 'did you mean "fifo"?'),
        ("staleness.policy=pace", 'staleness.policy = "pace" has no hard bound'),
        ("environment.refused=1.0", "no group would be of use"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key(tmp_path: Path, override: str, words: str) -> None:
    path = tmp_path / "sim.toml"
    path.write_text(PLAIN)
    found = invoke(path, "--set", override)
    assert found.exit_code == 2 and found.stdout == "" and found.stderr.count("\n") == 1, found.output
    assert words in found.stderr


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    found = invoke(tmp_path / "none.toml")
    assert found.exit_code == 2 and "none.toml" in found.stderr and found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "code", "words"),
    [
        ("admit(self, state): return 0", 2, "cannot progress: 1 <= admitted fails, it admits 0 groups at version 0"),
        ("select(self, *_): return None", 1, "cannot progress: nothing goes on at version 0"),
    ],
)
def test_a_policy_that_cannot_progress_is_one_line(method: str, code: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "miser.py").write_text(
        "from miles_async.staleness.fifo import Fifo\n"
        "class Miser(Fifo):\n"
        f"    def {method}\n"
        "def miser(staleness, rollout):\n"
        "    return Miser(staleness.max_lag)\n"
    )
    path = tmp_path / "sim.toml"
    path.write_text(PLAIN)
    found = invoke(path, "--set", f"staleness.policy={tmp_path / 'miser.py'}:miser")
    assert found.exit_code == code and found.stdout == "" and found.stderr.count("\n") == 1, found.output
    assert words in found.stderr


def test_keys_of_a_run_that_a_simulation_does_not_look_at_are_listed() -> None:
    config = parse(PLAIN, ["rollout.rollout_temperature=0.7", "rollout.num_workers=3", "router.max_retries=1"])
    assert unused(config) == ["rollout.rollout_temperature", "router.max_retries"]


def test_sections_of_other_files_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'unknown key "algorithm"|unknown section "algorithm"'):
        parse(PLAIN + "\n[algorithm]\nadvantage_estimator = 'grpo'\n")
