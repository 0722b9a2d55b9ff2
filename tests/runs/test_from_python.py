"""Runs from Python: the notebook of examples/ is carried out, and what it leaves is what the command line goes on with."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from launching import events, launch, summary, write_config
from safetensors.torch import load_file
from torch import equal
from typer.testing import CliRunner
from warm_start import WarmPopen

import miles_async as ma
from miles_async.api import starting
from miles_async.cli.app import app
from miles_async.cli.load import parse
from miles_async.config import toml
from miles_async.config.schema import ConfigError
from miles_async.runs.lock import RunLock
from miles_async.train.convert import convert, find

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 10  # of the notebook's run


async def carry_out(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Run a notebook's code in an event loop that runs, as it does in a kernel; the names that it leaves."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the notebook leaves: ``run``, its ``summary`` and ``samples``, and its ``fork``."""
    place = tmp_path_factory.mktemp("notebook")
    shutil.copy(EXAMPLES / "quickstart.toml", place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(starting, "Popen", WarmPopen)
        return asyncio.run(carry_out(json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]))


def test_a_configuration_made_in_python_is_that_of_a_file_with_its_keys_and_is_refused_as_one() -> None:
    keys = '[model]\nhf_checkpoint = "a"\n[data]\nprompt_data = ["b"]\nlabel_key = "none"\n[run]\nnum_steps = 3\n'
    sections = (
        '[eval]\neval_interval = 2\n[eval.datasets.seen]\nprompt_data = "c"\n[algorithm]\ncorrection = "behaviour"\n'
    )
    made = ma.configuration(
        model={"hf_checkpoint": "a"},
        data={"prompt_data": ["b"], "label_key": None},
        run={"num_steps": 3},
        eval={"eval_interval": 2, "datasets": {"seen": {"prompt_data": "c"}}},
        algorithm={"correction": "behaviour"},
    )
    assert made == toml.parse(keys + sections)
    with pytest.raises(ConfigError, match=r'unknown key "run.num_step"; did you mean "run.num_steps"\?'):
        ma.configuration(model={"hf_checkpoint": "a"}, data={"prompt_data": "b"}, run={"num_step": 3})
    with pytest.raises(ConfigError, match=r"model.hf_checkpoint is missing"):
        ma.configuration(data={"prompt_data": "b"})


def test_a_notebook_starts_a_run_and_reads_its_steps(names: dict[str, Any]) -> None:
    run, found = names["run"], names["summary"]
    assert (found["status"], found["steps"], found["balanced"]) == ("finished", STEPS, True)
    assert run.directory.parent.name == "runs" and run.directory.name.startswith("quickstart-")
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and all("raw_reward" in row for row in rows)
    assert {"step", "time"} < run.metrics("rollout-0")[0].keys()
    with pytest.raises(ConfigError, match=r'no actor "lerner-0" .*; did you mean "learner-0"'):
        run.metrics("lerner-0")


def test_the_samples_of_a_step_are_those_that_it_was_trained_on(names: dict[str, Any]) -> None:
    run, samples = names["run"], names["samples"]
    assert len(samples) == 32 * 8 and len({sample["group"] for sample in samples}) == 32
    mean = sum(sample["reward"] for sample in samples) / len(samples)
    assert mean == pytest.approx(run.metrics()[-1]["raw_reward"], abs=1e-5)
    assert {"index", "prompt", "label", "text", "length", "versions", "finish_reason"} <= samples[0].keys()
    with pytest.raises(ValueError, match="step 11 is not on record; its steps are 1 to 10"):
        run.samples(STEPS + 1)


def test_a_fork_begins_with_the_weights_of_the_checkpoint_and_counts_from_the_start(
    names: dict[str, Any], tmp_path: Path
) -> None:
    run, fork = names["run"].directory, names["fork"].directory
    found = summary(fork)
    assert (found["status"], found["steps"], found["balanced"]) == ("finished", 3, True)
    assert events(fork, "forked")[0]["data"] == {"run": str(run), "step": STEPS}
    convert(find(run), tmp_path / "expected")
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    taken = load_file(fork / "forked" / "model" / "model.safetensors")
    assert taken.keys() == expected.keys() and all(equal(taken[name], expected[name]) for name in taken)
    assert names["fork"].metrics()[0]["step"] == 1
    assert toml.read(fork / "config.toml").model.hf_checkpoint == str(fork / "forked" / "model")


def test_a_fork_goes_on_as_any_run_and_more_steps_of_a_finished_run_go_on(
    names: dict[str, Any], tmp_path: Path
) -> None:
    fork, config = names["fork"].directory, EXAMPLES / "quickstart.toml"
    shutil.rmtree(names["run"].directory / "checkpoints")  # what the fork began with is its own
    result = launch(config, fork, "--set", "checkpoint.save_hf=false", "--set", "run.num_steps=5")
    assert result.returncode == 0, result.stderr
    found = summary(fork)
    assert (found["status"], found["steps"], found["balanced"]) == ("finished", 5, True)
    assert [row["step"] for row in names["fork"].metrics()] == [1, 2, 3, 4, 5]
    assert found["ledger"]["trained"] == 5 * 32
    assert [event["data"]["after_step"] for event in events(fork, "resumes")] == [3]
    other = CliRunner().invoke(app, ["launch", str(config), "--run-dir", str(fork), "--from", str(tmp_path)])
    assert other.exit_code == 2 and "began with" in other.stderr and other.stderr.count("\n") == 1


def test_what_a_launch_refuses_is_raised_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "Popen", lambda *_, **__: pytest.fail("it was started"))
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    with pytest.raises(ConfigError, match=r"run\.num_step.*did you mean .run\.num_steps"):
        ma.launch(config, run={"num_step": 3})
    with pytest.raises(ConfigError, match=r"staleness\.max_lag = -1"):
        ma.launch(config, staleness={"max_lag": -1})
    with pytest.raises(ConfigError, match="no run here"):
        ma.load(tmp_path)
    made = parse('[model]\nhf_checkpoint = "builtin:digits"\n[data]\n[router]\napi_key = "hush"', check=False)
    with pytest.raises(ConfigError, match="env:NAME"):
        ma.launch(made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.toml"]


def test_a_launch_that_is_refused_later_is_its_last_line_and_the_run_is_left_alone(tmp_path: Path) -> None:
    config = parse(write_config(tmp_path).read_text(), base=tmp_path)
    (tmp_path / "run").mkdir()
    lock = RunLock(tmp_path / "run")
    lock.take()  # a launch is alive there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "Popen", WarmPopen)
        run = ma.launch(config, run_dir=tmp_path / "run", run={"num_steps": 2})
    with pytest.raises(ma.RunFailedError, match="is in use by a launch that is alive"):
        run.wait(timeout_s=120)
    lock.release()


def test_metrics_are_a_data_frame_where_pandas_is_there(monkeypatch: pytest.MonkeyPatch, names: dict[str, Any]) -> None:
    pandas = ModuleType("pandas")
    pandas.DataFrame = lambda rows: ("frame", rows)  # type: ignore[attr-defined]
    rows = names["run"].metrics()
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert names["run"].metrics() == ("frame", rows)


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, miles_async; print([m for m in sys.modules if m.startswith(('miles_async.', 'bus', 'typer'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'lunch'"):
        ma.lunch  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
