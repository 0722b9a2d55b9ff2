"""Going on with a run: what may be otherwise than before, and when there is nothing left to do."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from actors.runtime.home import RunHome
from actors.runtime.placement.local import LocalPlacement
from actors.runtime.supervisor import OK, Supervisor
from miles_async.cli.again import command
from miles_async.cli.load import parse
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.monitor import Monitor
from miles_async.resume.begin import Beginning, begin, review
from miles_async.resume.changes import CHECKED, FIXED, FREE
from miles_async.runs import launches
from miles_async.runs.state import RunStateError
from miles_async.train import checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = '[model]\nhf_checkpoint = "a"\n[data]\nprompt_data = "here"\n'


def config(**keys: object) -> RunConfig:
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in keys.items()]
    return parse(CONFIG, overrides, base=Path("/models"), check=False)


def earlier(run_dir: Path, **keys: object) -> Path:
    """A run directory as a launch left it that has dealt prompts."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "transitions.jsonl").write_text('{"id":"1-0","kind":"admitted","groups":["0-1-0"]}\n')
    launches.add(run_dir, config(**keys), "run-1", 1)
    return run_dir


def trained(run_dir: Path, steps: int, status: str = "finished", rewards: tuple[float, ...] = ()) -> Path:
    root = run_dir / "checkpoints"
    extra = {"run_id": "run-1", "incarnation": 1, "rewards": list(rewards)}
    checkpoint.commit(root, checkpoint.begin(root, steps), checkpoint.LearnerState(version=steps, extra=extra), keep=2)
    (run_dir / "hf").mkdir()
    (run_dir / "hf" / "config.json").write_text("{}")
    (run_dir / "summary.json").write_text(json.dumps({"status": status, "steps": steps, "troubles": []}))
    return run_dir


def go_on(run_dir: Path, **keys: object) -> Beginning:
    return begin(config(**keys), run_dir, "run-1", 2, resumed=True)


def content(run_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_every_key_is_decided_once() -> None:
    keys = [
        f"{section.encode_name}.{key.encode_name}"
        for section in msgspec.structs.fields(RunConfig)
        for key in msgspec.structs.fields(section.type)
    ]
    free = [f"{section}.{key}" for section, names in FREE.items() for key in names.split()]
    decided = [*FIXED, *free, *CHECKED]
    assert len(decided) == len(set(decided))
    undecided = set(keys) - set(decided)
    assert not undecided, (
        f"may they change when a run is resumed? miles_async/resume/changes.py has to say: {undecided}"
    )
    assert not set(decided) - set(keys)


def test_the_documentation_lists_what_cannot_change() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## Stopping and resuming")[2]
    assert [key for key in [*FIXED, *CHECKED] if f"`{key}`" not in text] == []


def test_what_cannot_change_is_refused_by_key_and_nothing_is_overwritten(tmp_path: Path) -> None:
    run_dir = earlier(tmp_path, run__seed=1)
    before = content(run_dir)
    with pytest.raises(ConfigError) as caught:
        go_on(run_dir, model__hf_checkpoint="b", run__seed=2, learner__lr=0.5)
    text = str(caught.value)
    assert "model.hf_checkpoint = '/models/b', and was '/models/a': " in text
    assert "run.seed = 2, and was 1: " in text
    assert "\n" not in text and "learner.lr" not in text
    assert content(run_dir) == before


@pytest.mark.parametrize("key", sorted(FIXED))
def test_each_key_that_cannot_change_is_refused(tmp_path: Path, key: str) -> None:
    name = key.replace(".", "__")
    others: dict[str, object] = {
        "model__dtype": "bfloat16",
        "data__prompt_weights": [1.0],
        "data__rollout_shuffle": False,
        "algorithm__loss_type": "sft_loss",
        "algorithm__use_opd": True,
        "learner__use_distributed_optimizer": True,
        "rollout__rollout_temperature": 0.5,
        "learner__adam_beta1": 0.5,
        "learner__adam_beta2": 0.5,
        "learner__adam_eps": 0.5,
        "run__seed": 77,
        "rollout__rollout_batch_size": 77,
        "rollout__n_samples_per_prompt": 77,
        "data__rollout_max_prompt_len": 77,
    }
    with pytest.raises(ConfigError, match=key):
        go_on(earlier(tmp_path), **{name: others.get(name, "another")})


def test_what_can_change_is_told_and_each_launch_keeps_its_configuration(tmp_path: Path) -> None:
    run_dir = earlier(tmp_path, learner__lr=0.5)
    trained(run_dir, 7, "stopped")
    beginning = go_on(run_dir, learner__lr=0.25, reward__rm_type="exact_match", router__api_key="hush")
    assert not beginning.over
    assert list(beginning.events) == [
        ("resumes", {"after_step": 7, "launch": 2}),
        ("config_changed", {"key": "reward.rm_type", "was": "graded_match", "now": "exact_match"}),
        ("config_changed", {"key": "learner.lr", "was": 0.5, "now": 0.25}),
        ("config_changed", {"key": "router.api_key", "was": "none", "now": "***"}),
    ]
    kept = [parse((run_dir / "launches" / f"{n}.toml").read_text(), check=False).learner.lr for n in (1, 2)]
    assert kept == [0.5, 0.25]


def test_another_estimator_is_fine_where_neither_has_a_critic_or_both(tmp_path: Path) -> None:
    run_dir = earlier(tmp_path)
    assert [kind for kind, _ in go_on(run_dir, algorithm__advantage_estimator="rloo").events][1:] == ["config_changed"]
    with pytest.raises(ConfigError, match=r"advantage_estimator = .ppo., and was .*without a critic"):
        go_on(run_dir, algorithm__advantage_estimator="ppo")


def test_the_ledger_cannot_move_between_a_server_of_ours_and_somebody_elses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bus\.url"):
        go_on(earlier(tmp_path / "ours"), bus__url="redis://there")
    moved = go_on(earlier(tmp_path / "theirs", bus__url="redis://:one@there"), bus__url="redis://:two@there")
    assert len(moved.events) == 1  # another password


def test_a_configuration_of_another_release_is_compared_where_both_know_the_key(tmp_path: Path) -> None:
    run_dir = earlier(tmp_path)
    (run_dir / "config.toml").write_text('[model]\nhf_checkpoint = "/models/a"\nplate = 3\n[attic]\nkey = 1\n')
    assert [data for kind, data in go_on(run_dir).events if kind == "config_changed"] == [
        {"key": "data.prompt_data", "was": [], "now": "/models/here"}
    ]


def test_a_finished_run_is_said_to_be_finished_and_nothing_is_started(tmp_path: Path) -> None:
    run_dir = trained(earlier(tmp_path, run__num_steps=40), 40)
    before = content(run_dir)
    over = go_on(run_dir, run__num_steps=40).over
    assert over == f"the run in {run_dir} is finished: 40 steps are done; to go on, give a higher run.num_steps"
    with pytest.raises(ConfigError, match=r"run.num_steps = 3: the run in .* has done 40 steps already"):
        go_on(run_dir, run__num_steps=3)
    assert content(run_dir) == before
    assert not go_on(run_dir, run__num_steps=41).over


def test_a_run_that_has_something_left_to_do_at_its_end_is_not_over(tmp_path: Path) -> None:
    for name in ("stopped", "failed"):
        assert not go_on(trained(earlier(tmp_path / name, run__num_steps=4), 4, name), run__num_steps=4).over
    run_dir = trained(earlier(tmp_path / "finished", run__num_steps=4), 4)
    assert go_on(run_dir, run__num_steps=4).over
    (run_dir / "metrics.jsonl").write_text("")
    os.utime(run_dir / "metrics.jsonl", ns=(1 << 62, 1 << 62))
    assert not go_on(run_dir, run__num_steps=4).over  # a later launch was killed: the summary is of the one before
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "hf" / "config.json").unlink()
    assert not go_on(run_dir, run__num_steps=4).over  # the export is missing
    assert go_on(run_dir, run__num_steps=4, checkpoint__save_hf=True).over == ""
    assert not go_on(run_dir, run__num_steps=4, checkpoint__save_hf=False, eval__eval_interval=2).over


def test_a_run_that_reached_its_target_is_over_until_the_target_is_higher(tmp_path: Path) -> None:
    run_dir = trained(earlier(tmp_path, run__target_reward=0.5), 12, rewards=(0.5, 0.6, 0.5, 0.5, 0.5))
    assert "run.target_reward = 0.5 is reached" in go_on(run_dir, run__target_reward=0.5).over
    assert not go_on(run_dir, run__target_reward=0.9).over


def test_a_run_that_has_dealt_nothing_can_still_change_everything(tmp_path: Path) -> None:
    run_dir = earlier(tmp_path)
    (run_dir / "transitions.jsonl").write_bytes(b"")
    (run_dir / "inputs" / "model").mkdir(parents=True)
    assert [kind for kind, _ in go_on(run_dir, learner__lr=0.5).events] == ["resumes", "config_changed"]
    assert (run_dir / "inputs" / "model").exists()
    assert [kind for kind, _ in go_on(run_dir, learner__lr=0.5, model__hf_checkpoint="b").events] == [
        "resumes",
        "config_changed",
    ]
    assert not (run_dir / "inputs").exists()  # what is made from those keys is made again


def test_a_directory_without_a_run_has_nothing_to_compare(tmp_path: Path) -> None:
    assert review(config(), tmp_path / "none") == ([], [])
    new = begin(config(), tmp_path, "run-1", 1, resumed=False)
    assert new == Beginning([]) and (tmp_path / "launches" / "1.toml").exists()


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_launch_that_is_refused_or_over_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    home = RunHome(tmp_path)
    home.enter()
    home.leave()
    run_dir = trained(earlier(tmp_path, run__num_steps=4), 4)
    monitor = Monitor(stream=io.StringIO())
    assert Supervisor(config(run__num_steps=4), run_dir, monitor, LocalPlacement()).run() == OK
    assert monitor.summary is not None and monitor.summary["steps"] == 4 and "is finished" in monitor.note
    before = content(run_dir)
    with pytest.raises(ConfigError, match=r"run\.seed"):
        Supervisor(
            config(run__num_steps=4, run__seed=9), run_dir, Monitor(stream=io.StringIO()), LocalPlacement()
        ).run()
    after = content(run_dir)
    assert {path.name for path in after if after[path] != before.get(path)} == {"supervisor.json"}


@pytest.mark.parametrize("path", ["/proc/x", "/proc/self/comm/x", "/proc/self/comm", "/proc/self"])
def test_a_place_that_can_be_no_run_directory_is_one_line(path: str) -> None:
    with pytest.raises(RunStateError, match=f"{path} cannot be a run directory: ") as caught:
        RunHome(Path(path)).enter()
    assert "\n" not in str(caught.value)


def test_the_command_that_goes_on_can_be_copied() -> None:
    found = command(Path("my runs/a.toml"), ["learner.lr=1e-3", "router.api_key=hush"], Path("/r/x"))
    assert found == (
        "miles-async launch 'my runs/a.toml' --set learner.lr=1e-3 --set 'router.api_key=***' --run-dir /r/x"
    )
