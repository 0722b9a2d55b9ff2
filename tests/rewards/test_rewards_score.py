"""Scoring a group: one grade or one error for each sample, dicts, weighted sums, groups, and what metadata may choose."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_async.cli.load import load, parse
from miles_async.config.schema import ConfigError, Reward, RunConfig
from miles_async.config.toml import dump
from miles_async.rewards import Graded, Grader, RewardConfigError, RewardError, RewardSample
from miles_async.rewards.registry import chosen, short_name
from miles_async.rewards.weighted import weighted_sum

USER_REWARDS = """
import math, os, time
import numpy

def by_command(sample):
    match sample.response:
        case "hang": time.sleep(3600)
        case "die": os._exit(3)
        case "raise": raise ValueError("no")
        case "dict": return {"total": 2, "style": 0.5}
        case "numpy": return {"total": numpy.float32(2), "style": numpy.array(0.5)}
        case "no total": return {"style": 0.5}
        case "empty": return {}
        case "text in it": return {"total": 1.0, "pred": "7"}
        case "nan in it": return {"total": 1.0, "style": math.nan}
        case "a number for a name": return {1: 1.0}
        case "many": return {str(i): 1.0 for i in range(65)}
    return 1.0

def length(sample): return len(sample.response)

async def rank(samples):
    commands = {sample.response for sample in samples}
    if "hang" in commands: time.sleep(3600)
    if "die" in commands: os._exit(3)
    if "short" in commands: return [1.0]
    if "none" in commands: return [1.0] * (len(samples) - 1) + [None]
    if "one number" in commands: return 1.0
    if "dicts" in commands: return [{"total": i, "n": len(samples)} for i, _ in enumerate(samples)]
    if "numpy" in commands: return numpy.arange(len(samples))
    order = sorted(len(sample.response) for sample in samples)
    return [order.index(len(sample.response)) for sample in samples]

def two(one, other): return 1.0
"""

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = '[model]\nhf_checkpoint = "builtin:digits"\n[data]\nprompt_data = "builtin:repeat"\n[staleness]\nmax_lag = 0\n'


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USER_REWARDS)
    return path


def sample(response: str, label: str | None = None, **metadata: Any) -> RewardSample:
    return RewardSample(prompt="", response=response, label=label, metadata=metadata)


def grading_processes() -> list[int]:
    """Those of this process that live (a test before this one may have left it a Redis server)."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "miles_async.rewards.grading_process" in child.cmdline():
                found.append(child.pid)
    return found


async def score(config: Reward, *samples: RewardSample) -> list[Graded | str]:
    """The grades, with errors as text."""
    async with Grader(config) as grader:
        grades = await grader.score(samples)
    return [str(grade) if isinstance(grade, RewardError) else grade for grade in grades]


@pytest.mark.parametrize("num_processes", [1, 3])
async def test_a_hanging_raising_or_dying_grader_costs_one_sample(module: Path, num_processes: int) -> None:
    config = Reward(rm_type=f"{module}:by_command", timeout_s=2.0, num_processes=num_processes)
    commands = ["fine", "hang", "fine", "die", "raise", "fine"]
    grades = await score(config, *map(sample, commands))
    assert grades == [
        Graded(1.0),
        f"reward_timeout: {module}:by_command gave no reward within 2 s",
        Graded(1.0),
        "reward_error: the grading process ended with exit status 3",
        "reward_error: ValueError: no",
        Graded(1.0),
    ]
    assert grading_processes() == []


async def test_a_cheap_built_in_that_raises_costs_one_sample_too() -> None:
    grades = await score(Reward(), sample("7", "7"), sample("7"), sample("8", "7"))
    assert grades == [Graded(1.0), "reward_error: ValueError: the prompt has no label", Graded(0.5)]
    assert await score(Reward()) == []


# --- dicts


async def test_a_dict_of_numbers_is_a_reward_and_its_parts(module: Path) -> None:
    config = Reward(rm_type=f"{module}:by_command", reward_key="total", timeout_s=60)
    expected = {
        "dict": Graded(2.0, {"total": 2.0, "style": 0.5}),
        "numpy": Graded(2.0, {"total": 2.0, "style": 0.5}),
        "plain": Graded(1.0),
        "no total": 'reward_error: no part "total" (reward.reward_key); there is style',
        "empty": 'reward_error: no part "total" (reward.reward_key); there is nothing',
        "text in it": 'reward_error: TypeError: the part "pred" of a reward must be a number, not str',
        "nan in it": 'reward_error: ValueError: the part "style" of a reward must be finite, not nan',
        "a number for a name": "reward_error: TypeError: the name of a part must be a string, not 1",
        "many": "reward_error: ValueError: a reward may have 64 parts, not 65",
    }
    grades = await score(config, *map(sample, expected))
    assert dict(zip(expected, grades, strict=True)) == expected


async def test_a_dict_is_refused_unless_reward_key_says_which_entry_it_is(module: Path) -> None:
    (grade,) = await score(Reward(rm_type=f"{module}:by_command"), sample("dict"))
    assert grade == "reward_error: which part is the reward? reward.reward_key is not set; there is total, style"


async def test_dapo_is_its_score_unless_reward_key_says_otherwise() -> None:
    right = sample("Answer: 7", "7")
    assert await score(Reward(rm_type="dapo"), right) == [Graded(1.0, {"score": 1.0, "acc": 1.0})]
    wrong = sample("Answer: 8", "7")
    assert await score(Reward(rm_type="dapo", reward_key="acc"), wrong) == [Graded(0.0, {"score": -1.0, "acc": 0.0})]


# --- weighted sums


async def test_a_weighted_sum_adds_its_rewards_and_keeps_the_addends(module: Path) -> None:
    weights = {"dapo": 1.0, "exact_match": 0.5, f"{module}:length": -0.25}
    config = Reward(rm_type="weighted_sum", rm_weights=weights)
    grades = await score(config, sample("Answer: 7", "7"), sample("", "7"))
    assert grades == [
        Graded(1.0 - 9 / 4, {"dapo": 1.0, "exact_match": 0.0, "length": -9 / 4}),
        Graded(-1.0, {"dapo": -1.0, "exact_match": 0.0, "length": 0.0}),
    ]


async def test_a_sum_without_one_of_its_addends_is_an_error_that_names_it(module: Path) -> None:
    weights = {"exact_match": 1.0, f"{module}:by_command": 1.0}
    config = Reward(rm_type="weighted_sum", rm_weights=weights)
    grades = await score(config, sample("fine", "fine"), sample("raise", "x"), sample("fine"))
    assert grades == [
        Graded(2.0, {"exact_match": 1.0, "by_command": 1.0}),
        "reward_error: by_command: ValueError: no",
        "reward_error: exact_match: ValueError: the prompt has no label",
    ]


finite = st.floats(-1e6, 1e6)


@given(st.dictionaries(st.text(min_size=1), st.tuples(finite, finite), min_size=1))
def test_the_addends_of_a_sum_are_weight_times_reward_and_sum_to_it(given: dict[str, tuple[float, float]]) -> None:
    grades = {name: Graded(reward) for name, (reward, _) in given.items()}
    total = weighted_sum(grades, {name: weight for name, (_, weight) in given.items()})
    assert isinstance(total, Graded)
    assert total.parts == {name: reward * weight for name, (reward, weight) in given.items()}
    assert total.reward == pytest.approx(sum(total.parts.values()), abs=1e-3)


def test_a_sum_that_overflows_is_an_error() -> None:
    error = weighted_sum({"a": Graded(1e308), "b": Graded(1e308)}, {"a": 1.0, "b": 1.0})
    assert isinstance(error, RewardError)


# --- groups


async def test_group_rm_calls_a_function_once_with_the_whole_group(module: Path) -> None:
    config = Reward(rm_type=f"{module}:rank", group_rm=True, reward_key="total")
    assert await score(config, *map(sample, ["ccc", "a", "bb"])) == [Graded(2.0), Graded(0.0), Graded(1.0)]
    assert await score(config, sample("numpy"), sample("")) == [Graded(0.0), Graded(1.0)]
    assert await score(config, sample("dicts"), sample("")) == [
        Graded(0.0, {"total": 0.0, "n": 2.0}),
        Graded(1.0, {"total": 1.0, "n": 2.0}),
    ]


async def test_a_failing_group_function_costs_its_group_and_not_the_next_one(module: Path) -> None:
    async with Grader(Reward(rm_type=f"{module}:rank", group_rm=True, timeout_s=2.0)) as grader:
        for command, expected in [
            ("hang", f"reward_timeout: {module}:rank gave no reward within 2 s"),
            ("die", "reward_error: the grading process ended with exit status 3"),
            ("short", "reward_error: ValueError: a group of 2 samples needs as many rewards, not 1"),
            ("none", "reward_error: TypeError: a reward must be a number, not NoneType"),
            ("one number", "reward_error: TypeError: a group's rewards must be a list, not float"),
            ("dicts", "reward_error: which part is the reward? reward.reward_key is not set; there is total, n"),
        ]:
            assert [str(grade) for grade in await grader.score([sample(command), sample("x")])] == [expected] * 2
        assert await grader.score([sample("a"), sample("bb")]) == [Graded(0.0), Graded(1.0)]


async def test_built_ins_look_at_one_sample_also_with_group_rm(module: Path) -> None:
    weights = {"exact_match": 1.0, f"{module}:rank": 10.0}
    config = Reward(rm_type="weighted_sum", rm_weights=weights, group_rm=True)
    assert await score(config, sample("aa", "aa"), sample("a", "b")) == [
        Graded(11.0, {"exact_match": 1.0, "rank": 10.0}),
        Graded(0.0, {"exact_match": 0.0, "rank": 0.0}),
    ]


# --- what metadata may choose


async def test_metadata_choose_a_built_in_or_a_function_that_the_configuration_names(module: Path) -> None:
    config = Reward(rm_types=[f"{module}:length"], timeout_s=60)
    grades = await score(
        config,
        sample("abc", "xyz"),
        sample("abc", "xyz", rm_type=""),
        sample("Answer: 7", "7", rm_type="dapo"),
        sample(r"\boxed{7}", "7", rm_type=" boxed_exact_match "),
        sample(r"\boxed{2/4}", "1/2", rm_type="boxed_math"),  # in a process that only this sample asks for
        *(sample("abc", rm_type=name) for name in ("length", "mine.length", "mine.py:length", f"{module}:length")),
    )
    assert [grade.reward if isinstance(grade, Graded) else grade for grade in grades] == [
        0.25,  # the stop is right
        0.25,
        1.0,
        1.0,
        1.0,
        *[3.0] * 4,
    ]


@pytest.mark.parametrize(
    ("rm_type", "expected"),
    [
        ("os.system", "rm_type = 'os.system'; one of length, graded_match,"),
        ("mine.by_command", "rm_type = 'mine.by_command'; one of"),  # in a file of ours, but not named
        ("/tmp/evil.py:length", "rm_type = '/tmp/evil.py:length'"),
        ("e.length", "rm_type = 'e.length'"),
        ("lenght", """rm_type = 'lenght'; did you mean "length"?"""),
        ("boxed_length", "rm_type = 'boxed_length'"),
        (["math"], "rm_type = ['math']"),
        (7, "rm_type = 7"),
        ("weighted_sum", "weighted_sum: reward.rm_weights is empty"),
        ("remote_rm", "remote_rm needs reward.rm_url"),
    ],
)
async def test_what_metadata_may_not_choose_costs_that_sample_and_runs_nothing(
    module: Path, rm_type: Any, expected: str
) -> None:
    config = Reward(rm_types=[f"{module}:length"])
    good, bad = await score(config, sample("7", "7"), sample("7", "7", rm_type=rm_type))
    assert good == Graded(1.0)
    assert isinstance(bad, str)
    assert expected in bad
    assert "\n" not in bad


@given(st.text() | st.integers() | st.lists(st.text()))
def test_metadata_reach_nothing_but_built_ins_and_named_functions(rm_type: Any) -> None:
    config = Reward(rm_types=["/a/b.py:f"])
    try:
        name = chosen(sample("", rm_type=rm_type), config)
    except RewardError:
        return
    assert name in ("/a/b.py:f", "graded_match") or name == rm_type.strip()


# --- the configuration


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


# --- the example


async def test_the_arithmetic_example_grades_by_mathematics_brevity_and_the_row_itself(tmp_path: Path) -> None:
    script, prompts = EXAMPLES / "arithmetic.py", tmp_path / "prompts.jsonl"
    command = [sys.executable, script, "--size", "8", "--out", prompts]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: ASYNC221  nothing else runs here
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    config = load(EXAMPLES / "arithmetic.toml", [f"data.prompt_data={prompts}", "reward.timeout_s=60"])
    async with Grader(config.reward) as grader:
        samples = [
            RewardSample(prompt=row["input"], response=text, label=row["label"], metadata=row["metadata"])
            for row in rows
            for text in (row["label"], "it is " + row["label"])
        ]
        grades = await grader.score(samples)
    for row, short, long in zip(rows, grades[::2], grades[1::2], strict=True):
        by_sum = not row["metadata"]
        assert short == (Graded(1.1, {"math": 1.0, "brief": 0.1}) if by_sum else Graded(1.0))
        assert isinstance(long, Graded)
        assert long.parts.get("math") == (1.0 if by_sum else None)
        assert long.reward == pytest.approx(1.1, abs=0.05) if by_sum else long.reward == 0.0
    assert sum(not row["metadata"] for row in rows) == 6
