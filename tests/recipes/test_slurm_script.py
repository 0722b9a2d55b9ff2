"""The script for sbatch, carried out: srun, scontrol, ray and miles-async are small programs of the test's."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from docs.recipes import CPUS, EXAMPLES, GPUS, example
from miles_async.recipes.render import RECIPES, render

PROGRAMS = {
    "srun": 'while [[ "$1" == --* ]]; do shift; done; echo "$*" >> "$LOGGED/srun"; SLURM_NODEID=0 exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$*" >> "$LOGGED/requeue"; fi',
    "getent": 'echo "10.0.0.5 STREAM first"',
    "ray": 'case "$1" in health-check) exit 0;; start) echo "$*" > "$LOGGED/started"; trap "exit 0" TERM\n'
    "while :; do sleep 0.05; done;; esac\n"
    'while [ "$1" != -- ]; do shift; done; shift; "$@"; exit "${RAY_CODE:-$?}"',
    "miles-async": 'ls -l "$RAY_AUTH_TOKEN_PATH" > "$LOGGED/token"; wc -c < "$RAY_AUTH_TOKEN_PATH" >> "$LOGGED/token"\n'
    'echo "$RAY_ADDRESS $RAY_AUTH_MODE $*" > "$LOGGED/launch.new"; trap "exit 130" TERM\n'
    'mv "$LOGGED/launch.new" "$LOGGED/launch"; [ -n "${CODE:-}" ] && exit "$CODE"\n'
    "while :; do sleep 0.05; done",
}
WAIT_S = 300.0  # only a hang takes as long
# what the script does where it hears a notice: it waits for the launch's process, or reads which one that is
LOOKS = {
    "sleep": 'touch "$LOGGED/looked"; command -p sleep "$@"',
    "cat": 'command -p cat "$@"; code=$?; touch "$LOGGED/looked"; exit $code',
}
HOLDS = (
    'if [ "$1" = {moment} ]; then touch "$LOGGED/held"; until [ -e "$LOGGED/go" ]; do command -p sleep 0.02; done; fi\n'
)
UNTOLD = 9  # of a launch that nobody has told to stop


class Job:
    """One job of ``script``, as sbatch starts it on the first machine."""

    def __init__(self, work_dir: Path, script: str, other: dict[str, str] | None = None, **environment: str) -> None:
        self.logged, self.programs = work_dir / "logged", work_dir / "programs"
        for directory in (self.logged, self.programs):
            directory.mkdir()
        for name, text in {**PROGRAMS, **(other or {})}.items():
            program = self.programs / name
            program.write_text(f"#!/usr/bin/env bash\n{text}\n")
            program.chmod(0o755)
        (work_dir / "job").write_text(script)
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n", "SLURM_CPUS_ON_NODE": "2"}
        path = f"{self.programs}:{os.environ['PATH']}"
        self.process = subprocess.Popen(
            ["bash", "job"],
            cwd=work_dir,
            env={**os.environ, **slurm, "LOGGED": str(self.logged), "PATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until(self, logged: str) -> None:
        """Returns once a program has left that file."""
        end = time.monotonic() + WAIT_S
        while not (self.logged / logged).exists():
            if time.monotonic() > end:
                self._kill()
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.01)

    def ended(self) -> int:
        try:
            self.said, _ = self.process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            self._kill()
            raise
        return self.process.returncode

    def _kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def script(**changes: object) -> str:
    job = dataclasses.replace(example(EXAMPLES / "cluster" / "grpo.toml", GPUS), program="miles-async", **changes)  # type: ignore[arg-type]
    return render(job, RECIPES["slurm"])


def test_a_job_runs_the_launch_on_the_cluster_with_a_token_and_leaves_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, script(), CODE="0")
    assert job.ended() == 0, job.said
    address, mode, *launch = (job.logged / "launch").read_text().split()
    assert (address, mode) == ("10.0.0.5:6380", "token")
    assert launch == ["launch", "/shared/grpo.toml", "--set", "placement.kind=ray", "--run-dir", "/shared/runs/grpo"]
    listed, size = (job.logged / "token").read_text().splitlines()
    assert listed.startswith(stat.filemode(stat.S_IFREG | 0o600)) and int(size) == 64
    assert "--min-nodes 1" in (job.logged / "srun").read_text()
    assert not (job.logged / "requeue").exists()
    assert not list(tmp_path.glob(".ray-token*"))


SYMMETRIC, BY_HAND = "2.60.0", "2.48.0"


@pytest.mark.parametrize("version", [SYMMETRIC, BY_HAND])
def test_a_notice_stops_the_run_in_order_and_queues_the_job_again(tmp_path: Path, version: str) -> None:
    job = Job(tmp_path, script(ray_version=version))
    job.until("launch")
    job.process.send_signal(signal.SIGUSR1)
    assert job.ended() == 130, job.said
    assert (job.logged / "requeue").read_text() == "requeue 7\n"


@pytest.mark.parametrize(("version", "moment"), [(SYMMETRIC, "symmetric-run"), (BY_HAND, "health-check")])
def test_a_notice_that_comes_before_the_launch_has_said_its_process_stops_it(
    tmp_path: Path, version: str, moment: str
) -> None:
    launch = PROGRAMS["miles-async"].replace("while :;", "for _ in {1..1200};") + f"\nexit {UNTOLD}"
    ray = HOLDS.format(moment=moment) + PROGRAMS["ray"]
    job = Job(tmp_path, script(ray_version=version), {**LOOKS, "ray": ray, "miles-async": launch})
    job.until("held")
    job.process.send_signal(signal.SIGUSR1)
    if (
        version == SYMMETRIC
    ):  # else the script itself waits for Ray, and acts on the notice behind that, before all else
        job.until("looked")
    (job.logged / "go").touch()
    assert job.ended() in (130, 143), job.said
    assert (job.logged / "requeue").read_text() == "requeue 7\n"


def test_a_job_whose_launch_a_notice_ends_before_it_hears_any_is_queued_again(tmp_path: Path) -> None:
    """As one does that is still being imported, or waits for its Redis or its places."""
    job = Job(tmp_path, script(), {"miles-async": 'touch "$LOGGED/launch"; while :; do sleep 0.05; done'})
    job.until("launch")
    job.process.send_signal(signal.SIGUSR1)
    assert job.ended() == 143, job.said
    assert (job.logged / "requeue").read_text() == "requeue 7\n"


def test_who_interrupts_a_job_has_it_stopped_in_order_and_not_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path, script())
    job.until("launch")
    job.process.send_signal(signal.SIGINT)
    assert job.ended() == 130, job.said
    assert not (job.logged / "requeue").exists()


def test_what_becomes_of_ray_after_the_launch_changes_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, script(), RAY_CODE="1")
    job.until("launch")
    job.process.send_signal(signal.SIGUSR1)
    assert job.ended() == 130, job.said
    assert (job.logged / "requeue").read_text() == "requeue 7\n"


@pytest.mark.parametrize("version", [SYMMETRIC, BY_HAND])
def test_a_run_that_fails_fails_the_job(tmp_path: Path, version: str) -> None:
    job = Job(tmp_path, script(ray_version=version), CODE="1")
    assert job.ended() == 1
    if version == BY_HAND:
        assert "--head --node-ip-address=10.0.0.5 --port=6380" in (job.logged / "started").read_text()
    assert not (job.logged / "requeue").exists()


def test_a_job_whose_machines_do_not_share_the_directory_says_so(tmp_path: Path) -> None:
    job = Job(tmp_path, script(), {"srun": "exit 1"})
    assert job.ended() == 2 and "it has to lie on shared storage" in job.said
    assert not list(tmp_path.glob(".ray-token*"))


def test_an_interface_that_is_named_is_that_of_all_collectives(tmp_path: Path) -> None:
    ip = 'echo "2: $6    inet 10.1.0.7/16 brd 10.1.255.255 scope global $6"'
    said = 'echo "$GLOO_SOCKET_IFNAME $NCCL_SOCKET_IFNAME $RAY_ADDRESS" > "$LOGGED/launch"'
    job = Job(tmp_path, script(), {"ip": ip, "miles-async": said}, MILES_INTERFACE="ib0")
    assert job.ended() == 0, job.said
    assert (job.logged / "launch").read_text() == "ib0 ib0 10.1.0.7:6380\n"


def test_a_first_machine_without_an_address_for_the_others_says_so(tmp_path: Path) -> None:
    job = Job(tmp_path, script(), {"getent": 'echo "127.0.1.1 STREAM first"'})
    assert job.ended() == 2 and "set MILES_INTERFACE" in job.said


@pytest.mark.parametrize("version", [SYMMETRIC, BY_HAND])
@pytest.mark.parametrize("machine", [GPUS, CPUS], ids=["gpus", "cpus"])
def test_every_form_of_the_script_is_one_that_bash_reads(version: str, machine: object) -> None:
    text = script(ray_version=version, machine=machine)
    assert ("symmetric-run" in text) == (version == SYMMETRIC)
    done = subprocess.run(["bash", "-n"], check=False, input=text, text=True, capture_output=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
