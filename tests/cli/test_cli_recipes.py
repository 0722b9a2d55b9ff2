"""``miles-async launch --slurm | --kuberay | --recipe``: what is printed is what is submitted, what is wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from miles_async.cli import app as cli
from miles_async.config.toml import text_of

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.toml"


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def launch(*args: object, config: Path = QUICKSTART) -> Result:
    return CliRunner().invoke(cli.app, ["launch", str(config), *(str(arg) for arg in args)])


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


def program(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """``name`` on the PATH, alone."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def test_what_a_dry_run_prints_is_what_sbatch_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", monkeypatch, "sbatch", "cat > given; echo Submitted batch job 12")
    shown = launch("--slurm", "--dry-run", "--run-dir", "runs/a")
    assert shown.exit_code == 0 and not (tmp_path / "given").exists()
    done = launch("--slurm", "--run-dir", "runs/a")
    assert done.exit_code == 0 and done.stdout == "Submitted batch job 12\n"
    assert (tmp_path / "given").read_text() == shown.stdout
    assert f"--run-dir {tmp_path / 'runs' / 'a'}" in shown.stdout and f"#SBATCH --chdir={tmp_path}" in shown.stdout
    assert not (tmp_path / "runs").exists()


def test_a_scheduler_that_is_not_there_or_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_one_line(launch("--slurm"), "sbatch is not on the PATH", "--dry-run")
    assert_one_line(launch("--kuberay"), "kubectl is not on the PATH")
    program(
        tmp_path / "bin",
        monkeypatch,
        "sbatch",
        "cat > /dev/null; echo starting >&2; echo no such partition >&2; exit 3",
    )
    assert_one_line(launch("--slurm"), "sbatch refused", "code 3", "no such partition")


def test_a_manifest_for_elsewhere_is_made_where_there_is_no_model(tmp_path: Path) -> None:
    config = tmp_path / "r.toml"
    config.write_text(text_of(QUICKSTART).replace('"builtin:digits"', '"/models/large"'))
    shown = launch("--kuberay", "--dry-run", "--run-dir", "runs/b", "--set", "run.seed=3", config=config)
    assert shown.exit_code == 0, shown.output
    job = list(yaml.safe_load_all(shown.stdout))[1]
    assert job["spec"]["entrypoint"] == (
        "miles-async launch /shared/r.toml --set run.seed=3 --set placement.kind=ray --run-dir /shared/runs/b"
    )
    assert_one_line(launch("--slurm", "--dry-run", config=config), "model.hf_checkpoint", "/models/large")


def test_a_recipe_as_json_holds_its_text_and_what_is_given_it() -> None:
    found = json.loads(launch("--recipe", "raycluster", "--dry-run", "--json", "--nodes", 3).stdout)
    assert found["submit"] == ["kubectl", "apply", "-f", "-"] and found["nodes"] == 3
    assert list(yaml.safe_load_all(found["text"]))[1]["kind"] == "RayCluster"


def test_a_template_takes_the_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("{{ job.nodes }} {{ job.name }}\n")
    assert launch("--slurm", "--dry-run", "--template", "mine", "--run-dir", "runs/c").stdout == "1 c\n"
    assert_one_line(launch("--slurm", "--dry-run", "--template", "yours"), "--template yours", "No such file")


@pytest.mark.parametrize(
    "args, words",
    [
        (("--slurm", "--kuberay"), ("rayjob and slurm", "one recipe at a time")),
        (("--recipe", "composed"), ('--recipe "composed"', 'did you mean "compose"?')),
        (("--nodes", 2), ("--nodes belongs to --slurm, --kuberay or --recipe",)),
        (("--slurm", "--cpus-per-node", 1, "--nodes", 2), ("--nodes 2", "3 machines")),
        (
            ("--slurm", "--set", "placement.engine.num_cpus=9", "--cpus-per-node", 8),
            ("placement.engine.num_cpus: one of them on one machine, which is 9 CPUs",),
        ),
        (("--slurm", "--set", "placement.start_ray=true"), ("placement.start_ray", "leave it out")),
        (("--slurm", "--set", "placement.address=a:1"), ("placement.address", "leave it out")),
        (("--slurm", "--set", "router.api_key=hush"), ("env:NAME",)),
        (("--kuberay", "--set", "bus.url=redis://:hush@r:1"), ("env:NAME",)),
        (("--slurm", "--set", "run.sed=1"), ("run.sed", "run.seed")),
    ],
)
def test_what_cannot_be_submitted_is_one_line(args: tuple[object, ...], words: tuple[str, ...]) -> None:
    result = launch(*args, "--dry-run")
    assert_one_line(result, *words)
    assert "hush" not in result.output
