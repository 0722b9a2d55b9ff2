"""A sweep's file: every combination is one cell; what is wrong with it is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_async.config.schema import ConfigError
from miles_async.sweeping.grid import cells, group_of, parse

HEAD = '[sweep]\nconfig = "run.toml"\ndirectory = "out"\n'
GRID = '[grid]\n"staleness.policy" = ["fifo", "drop"]\n"run.seed" = [1, 2]\n'


def test_every_combination_is_a_cell_with_the_fixed_keys_before_its_own() -> None:
    sweep = parse(HEAD + '[set]\n"run.num_steps" = 3\n' + GRID, "s.toml", Path("/there"))
    assert (sweep.config, sweep.directory) == ("/there/run.toml", "/there/out")
    found = cells(sweep)
    names = ["policy=fifo,seed=1", "policy=fifo,seed=2", "policy=drop,seed=1", "policy=drop,seed=2"]
    assert [cell.name for cell in found] == names
    assert found[2].overrides == ("run.num_steps=3", 'staleness.policy="drop"', "run.seed=1")
    assert [group_of(cell) for cell in found] == ["policy=fifo", "policy=fifo", "policy=drop", "policy=drop"]


def test_names_are_plain_and_keys_of_one_last_part_are_told_apart() -> None:
    grid = (
        '[grid]\n"critic.critic_lr" = [1e-3]\n"learner.lr" = [0.1]\n"algorithm.correction" = [["behaviour", "tis"]]\n'
    )
    (cell,) = cells(parse(HEAD + grid, "s.toml", Path("/")))
    assert cell.name == "critic_lr=0.001,lr=0.1,correction=behaviour-tis"
    grid = '[grid]\n"router.kind" = ["ours"]\n"engine.kind" = ["embedded"]\n'
    (cell,) = cells(parse(HEAD + grid, "s.toml", Path("/")))
    assert cell.name == "router.kind=ours,engine.kind=embedded"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            HEAD + '[grid]\n"stalenes.max_lag" = [1]\n',
            's.toml: unknown key "stalenes.max_lag"; did you mean "staleness.max_lag"',
        ),
        (HEAD + '[set]\n"run.seeed" = 1\n' + GRID, 'unknown key "run.seeed"; did you mean "run.seed"'),
        (HEAD + "[gird]\n" + GRID, 'unknown table "gird"; did you mean "grid"'),
        (HEAD + "[grid]\n", r"\\[grid\\] is empty"),
        (HEAD + '[grid]\n"run.seed" = 1\n', "grid.run.seed = 1: expected a list"),
        (HEAD + '[grid]\n"run.seed" = [1, 1]\n', "it names a value twice"),
        (HEAD + "[grid]\nrun.seed = [1]\n", 'write the key in quotes, as one word: "run.seed"'),
        (HEAD + '[set]\n"run.seed" = 1\n' + GRID, r"run.seed is in \\[set\\] and in \\[grid\\]"),
        ('[sweep]\nconfig = "a"\n' + GRID, "missing required field `directory`"),
        ('[sweep]\ndirectory = "a"\n' + GRID, "one of the three"),
        (
            '[sweep]\nsimulation = "sim.toml"\ndirectory = "out"\n[grid]\n"engines.num_engine" = [1]\n',
            'unknown key "engines.num_engine"; did you mean "engines.num_engines"',
        ),
        (
            '[sweep]\nsimulation = "sim.toml"\ndirectory = "out"\n[grid]\n"run.seed" = [1]\n',
            'unknown key "run.seed"; did you mean "simulation.seed"',
        ),
        (HEAD + '[grid]\n"engines.num_engines" = [1]\n', 'unknown key "engines.num_engines"; did you mean'),
        (HEAD + "job = 2\n" + GRID, 'unknown key "sweep.job"; did you mean "jobs"'),
        (HEAD + "jobs = 0\n" + GRID, "`int` >= 1"),
        ("[sweep", "s.toml: "),
    ],
)
def test_what_is_wrong_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("\\\\", "\\")) as caught:
        parse(text, "s.toml", Path("/"))
    assert "\n" not in str(caught.value)


def test_cells_that_would_share_a_name_are_refused() -> None:
    grid = '[grid]\n"data.prompt_data" = ["a/b", "a?b"]\n'
    with pytest.raises(ConfigError, match="two cells of the sweep would both be called prompt_data=a-b"):
        cells(parse(HEAD + grid, "s.toml", Path("/")))
