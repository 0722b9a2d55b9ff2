"""The command line: exit codes, one clear line for each mistake, JSON and nothing else where it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from actors.runtime.placement.base import Placement
from bus.errors import NoRedisError
from miles_async.cli import app as cli
from miles_async.cli import running
from miles_async.cli.load import load, parse
from miles_async.config.schema import RunConfig
from miles_async.models import builtin
from miles_async.monitor import Monitor
from miles_async.runs import launches

CONFIG = """
[model]
hf_checkpoint = "builtin:tiny"
[data]
prompt_data = "builtin:repeat"
[algorithm]
correction = "behaviour"
[run]
num_steps = 7
"""


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.replace("builtin:tiny", next(iter(builtin.MODELS))))
    return path


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def assert_one_line(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


class StandInSupervisor:
    """Does what ``outcome`` says in place of training; what it is given is what the real one is given."""

    outcome: Any = 0

    def __init__(self, config: RunConfig, run_dir: Path, monitor: Monitor, placement: Placement) -> None:
        self.config, self.run_dir, self.monitor = config, run_dir, monitor

    def run(self) -> int:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        self.monitor.start(self.config, self.run_dir, resumed=False)
        reason = "" if self.outcome == 0 else "learner-0 died: out of memory"
        self.monitor.finish("failed" if self.outcome else "finished", {}, reason)
        return self.outcome


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the supervisor of a launch does."""
    monkeypatch.setattr(running, "SUPERVISOR", f"{__name__}.StandInSupervisor")
    return lambda what: monkeypatch.setattr(StandInSupervisor, "outcome", what)


def test_importing_the_command_line_imports_neither_torch_nor_an_actor() -> None:
    code = (
        "import miles_async.cli.app, sys; print([m for m in ('torch', 'actors', 'redis', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_missing_configuration_is_bad_input() -> None:
    assert_one_line(invoke("launch", "nowhere.toml"), 2, "nowhere.toml")


def test_a_wrong_key_is_one_line_with_the_nearest_name(config_file: Path) -> None:
    assert_one_line(invoke("launch", config_file, "--set", "run.num_step=3"), 2, "run.num_step", "run.num_steps")


def test_a_wrong_value_is_one_line_with_the_key_and_the_value(config_file: Path) -> None:
    assert_one_line(invoke("launch", config_file, "--set", "run.num_steps=0"), 2, "run.num_steps", "0")


def test_a_wrong_option_is_bad_input(config_file: Path) -> None:
    assert invoke("launch", config_file, "--no-such-option").exit_code == 2


def test_a_dry_run_prints_the_resolved_configuration_and_starts_nothing(config_file: Path) -> None:
    result = invoke("launch", config_file, "--set", "run.seed=5", "--dry-run")
    assert result.exit_code == 0, result.output
    assert parse(result.stdout).run.seed == 5
    assert parse(result.stdout).run.num_steps == 7
    assert not Path("runs").exists()


def test_a_dry_run_with_json_prints_one_document(config_file: Path) -> None:
    document = json.loads(invoke("launch", config_file, "--dry-run", "--json", "--run-dir", "here").stdout)
    assert document["run_dir"] == str(Path.cwd() / "here")
    assert document["config"]["run"]["num_steps"] == 7


def test_a_dry_run_says_what_a_run_that_goes_on_would_change_and_refuses_what_cannot(config_file: Path) -> None:
    Path("here").mkdir()
    Path("here/transitions.jsonl").write_text("{}\n")
    launches.add(Path("here"), load(config_file), "run-1", 1)
    result = invoke("launch", config_file, "--dry-run", "--run-dir", "here", "--set", "learner.lr=0.5")
    assert result.exit_code == 0, result.output
    assert "# learner.lr = 0.5, and was 1e-06, otherwise than in the launch before\n" in result.stdout
    refused = invoke("launch", config_file, "--dry-run", "--run-dir", "here", "--set", "run.seed=5")
    assert_one_line(refused, 2, "run.seed = 5, and was 1")


def test_a_dry_run_reads_every_prompt(config_file: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"input": "3>2>", "label": "33"}\n{"inputs": "4>2>"}\n')
    result = invoke("launch", config_file, "--dry-run", "--set", f"data.prompt_data={prompts}")
    assert_one_line(result, 2, "prompts.jsonl", "input")


def test_an_actor_that_is_not_there_is_named(config_file: Path) -> None:
    wrong_module = invoke("launch", config_file, "--set", "topology.dealer=nowhere_at_all.Dealer")
    assert_one_line(wrong_module, 2, "topology.dealer", "nowhere_at_all")
    wrong_class = invoke("launch", config_file, "--dry-run", "--set", "topology.dealer=pathlib.Peth")
    assert_one_line(wrong_class, 2, "topology.dealer", "Peth", "Path")


def test_a_launch_that_works_ends_with_0_and_the_summary(config_file: Path, outcome: Any) -> None:
    outcome(0)
    result = invoke("launch", config_file, "--run-dir", "here")
    assert result.exit_code == 0, result.output
    assert "finished" in result.stdout
    assert json.loads(Path("here/summary.json").read_text())["num_steps"] == 7
    assert tomllib.loads(Path("here/config.toml").read_text())["run"]["num_steps"] == 7


def test_a_launch_with_json_prints_the_summary_and_nothing_else(config_file: Path, outcome: Any) -> None:
    outcome(0)
    summary = json.loads(invoke("launch", config_file, "--json").stdout)
    assert summary["status"] == "finished"
    assert Path(summary["run_dir"]).parent == Path.cwd() / "runs"
    assert Path(summary["run_dir"]).name.startswith("run-")


def test_a_failed_run_ends_with_1_and_its_cause_last(config_file: Path, outcome: Any) -> None:
    outcome(1)
    result = invoke("launch", config_file)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "miles-async: learner-0 died: out of memory"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoRedisError("no Redis found: install redis-server"), 3),
        (KeyboardInterrupt(), 130),
        (TimeoutError("waited 30 s for learner-0"), 1),
        (PermissionError(13, "Permission denied", "/somewhere"), 2),
    ],
)
def test_what_ends_a_launch_has_its_exit_code(config_file: Path, outcome: Any, error: BaseException, code: int) -> None:
    outcome(error)
    assert_one_line(invoke("launch", config_file), code, "miles-async: ", str(error) or "interrupted")


def test_a_real_launch_without_a_redis_ends_with_3_and_names_it(config_file: Path) -> None:
    result = invoke("launch", config_file, "--set", "bus.url=unix:///no/such.sock")
    assert_one_line(result, 3, "no Redis answers at unix:///no/such.sock")


def test_a_surprise_is_one_line_and_leaves_its_traceback_in_the_run(config_file: Path, outcome: Any) -> None:
    outcome(RuntimeError("CUDA error\nsecond line"))
    Path("here").mkdir()
    result = invoke("launch", config_file, "--run-dir", "here")
    assert_one_line(result, 1, "CUDA error", "launch-error.log")
    assert "Traceback" in Path("here/launch-error.log").read_text()


def test_a_surprise_whose_log_finds_no_room_is_one_line_all_the_same(config_file: Path, outcome: Any) -> None:
    outcome(RuntimeError("CUDA error"))
    Path("here").mkdir()
    Path("here/launch-error.log").symlink_to("/dev/full")
    result = invoke("launch", config_file, "--run-dir", "here")
    assert_one_line(result, 1, "CUDA error", "launch-error.log cannot be written: No space left on device")


def test_an_unknown_benchmark_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "bench_bus.py").touch()
    monkeypatch.setattr("miles_async.cli.benchmarks._ROOT", tmp_path)
    assert_one_line(invoke("bench", "buss"), 2, "buss", 'did you mean "bus"')


def test_doctor_holds_a_model_against_transformers(tmp_path: Path) -> None:
    builtin.write_model(builtin.MODELS["builtin:digits"], tmp_path / "model", seed=1)
    result = invoke("doctor", str(tmp_path / "model"), "--json")
    (finding,) = json.loads(result.stdout)
    assert result.exit_code == 0 and (finding["name"], finding["state"]) == ("model", "ok")
    assert "Qwen3ForCausalLM, all layers: log-probs are transformers'" in finding["detail"]
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 8}')
    result = invoke("doctor", str(tmp_path / "gpt2"))
    assert result.exit_code == 1 and "model_type 'gpt2' (supported: " in result.stdout


def test_doctor_has_a_remedy_for_whatever_is_not_ok() -> None:
    result = invoke("doctor", "--json")
    findings = json.loads(result.stdout)
    assert {"python", "torch", "redis", "/dev/shm", "memory"} <= {finding["name"] for finding in findings}
    assert all(bool(finding["remedy"]) == (finding["state"] != "ok") for finding in findings)
    assert result.exit_code == (1 if any(finding["state"] == "fail" for finding in findings) else 0)
