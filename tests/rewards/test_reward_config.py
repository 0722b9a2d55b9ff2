"""The configuration of rewards: what is wrong is refused in one line before a sample is graded, and paths survive a dump."""

from __future__ import annotations

from pathlib import Path

import pytest
from grading import grading_processes
from reward_modules import scoring

from miles_async.cli.load import load, parse
from miles_async.config.schema import ConfigError, Reward, RunConfig
from miles_async.config.toml import dump
from miles_async.rewards import Grader, RewardConfigError
from miles_async.rewards.table import short_name


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return scoring(tmp_path)


CONFIG = '[model]\nhf_checkpoint = "builtin:digits"\n[data]\nprompt_data = "builtin:repeat"\n[staleness]\nmax_lag = 0\n'


def config_error(text: str, base: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(CONFIG + "[reward]\n" + text, base=base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('rm_type = "weighted_sum"', 'reward.rm_weights is empty: "weighted_sum" needs a table'),
        ("rm_weights = {math = 1}", 'reward.rm_weights is not used: set reward.rm_type = "weighted_sum"'),
        ('rm_type = "weighted_sum"\nrm_weights = {weighted_sum = 1}', "cannot be a part of itself"),
        ('rm_type = "weighted_sum"\nrm_weights = {"a.f" = 1, "b.py:f" = 2}', 'two of its rewards are called "f"'),
        ('rm_type = "weighted_sum"\nrm_weights = {math = "x"}', "expected a table of numbers"),
        ('rm_type = "weighted_sum"\nrm_weights = {math = nan}', "expected a table of numbers, finite"),
        ('rm_type = "weighted_sum"\nrm_weights = {mth = 1}', 'reward.rm_weights = "mth": there is no such built-in'),
        ('rm_type = "weighted_sum"\nrm_weights = {"mine.lenght" = 1}', 'did you mean "length"?'),
        ('rm_type = "boxed_remote_rm"', 'reward.rm_url is missing: "boxed_remote_rm" needs the URL'),
        ('rm_type = "remote_rm"\nrm_url = "localhost:80"', 'reward.rm_url: expected "http://..."'),
        ('rm_types = ["mine.absent"]', 'reward.rm_types = "'),
        ('rm_type = "mine.two"', "it must take (sample), but is (one, other)"),
        ('rm_type = "mine.two"\ngroup_rm = true', "it must take (samples), but is (one, other)"),
        ('rm_type = "boxed_mine.length"', 'there is no module "boxed_mine"'),
    ],
)
def test_a_wrong_reward_section_is_refused_in_one_line(module: Path, text: str, expected: str) -> None:
    assert expected in config_error(text, module.parent)


def test_paths_of_rewards_mean_beside_the_toml_file_and_survive_a_dump(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_SERVER", "http://127.0.0.1:1/")
    text = CONFIG + (
        '[reward]\nrm_type = "weighted_sum"\nrm_types = ["mine.length", "boxed_math"]\ngroup_rm = true\n'
        'rm_weights = {boxed_dapo = 1, "mine.py:rank" = 0.1}\nrm_url = "env:REWARD_SERVER"\nreward_key = "score"\n'
    )
    path = module.parent / "run.toml"
    path.write_text(text)
    config = load(path)
    assert config.reward.rm_types == [f"{module}:length", "boxed_math"]
    assert config.reward.rm_weights == {"boxed_dapo": 1.0, f"{module}:rank": 0.1}
    assert [short_name(name) for name in config.reward.rm_weights] == ["boxed_dapo", "rank"]
    assert parse(dump(config), base=Path("/")) == config
    assert isinstance(config, RunConfig)


async def test_a_function_that_only_metadata_names_is_imported_at_the_start(module: Path) -> None:
    with pytest.raises(RewardConfigError, match='has no function "absent"'):
        await Grader(Reward(rm_types=[f"{module}:absent"])).start()
    assert grading_processes() == []
