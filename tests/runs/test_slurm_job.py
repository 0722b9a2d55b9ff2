"""The script for sbatch on two machines, with Ray itself: a job that gets notice is queued again, the next one ends the run.

Slurm is played: `srun` runs a step on both machines, `scontrol` knows their names. A machine is namespaces of its own, those of
its processes too, since Ray looks for another Ray among all that it sees.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from launching import TINY, summary, write_config
from machines import Machine, environment, machines, why_not

from miles_async.cli.recipes import Wanted, prepare
from miles_async.recipes.render import RECIPES, render

STEPS = 60
ISOLATED = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
# a step is left to the other machine in a file, which says how it ended there in another one
SRUN = """
while [[ "$1" == --* ]]; do shift; done
step="$STEPS/$(ls "$STEPS" | wc -l)"
{ export -p; printf 'cd %q; exec' "$PWD"; printf ' %q' "$@"; } > "$step.new"; mv "$step.new" "$step.step"
code=0; "$@" || code=$?
until [ -e "$step.code" ]; do sleep 0.05; done
other=$(cat "$step.code"); exit $(( code > other ? code : other ))
"""
SCONTROL = 'if [ "$1" = show ]; then echo one; echo two; else echo "$*" >> "$LOGGED"; fi'
END_S = 240.0


@contextmanager
def steps_on(machine: Machine, directory: Path) -> Iterator[None]:
    """``machine`` carries out the steps that are left in ``directory``, until the end."""
    over, running = threading.Event(), list[tuple[Path, subprocess.Popen[str]]]()

    def look() -> None:
        while not over.wait(0.02):
            for step in directory.glob("*.step"):
                taken = step.rename(step.with_suffix(".taken"))
                with taken.with_suffix(".log").open("w") as log:
                    running.append((taken, machine.popen([*ISOLATED, "bash", str(taken)], stdout=log, stderr=log)))
            for taken, process in [one for one in running if one[1].poll() is not None]:
                running.remove((taken, process))
                taken.with_suffix(".new").write_text(str(process.returncode))
                taken.with_suffix(".new").rename(taken.with_suffix(".code"))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
        for _, process in running:
            process.kill()
            process.wait()


def job_script(config: Path, run_dir: Path) -> str:
    wanted = Wanted(slurm=True, nodes=2, cpus_per_node=4)
    before = Path.cwd()
    os.chdir(config.parent)
    try:
        return render(
            prepare(config, ["placement.interface=wire"], run_dir, run_dir, wanted, "slurm"), RECIPES["slurm"]
        )
    finally:
        os.chdir(before)


def started(machine: Machine, work_dir: Path, number: int) -> subprocess.Popen[str]:
    """The job on its first machine, as Slurm starts it."""
    slurm = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "one,two"}
    env = environment(
        **slurm,
        SLURM_CPUS_ON_NODE="4",
        MILES_INTERFACE="wire",
        STEPS=str(work_dir / "steps"),
        LOGGED=str(work_dir / "requeued"),
        PATH=f"{work_dir / 'programs'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_gcs_rpc_server_reconnect_timeout_s="5",  # else the other machine takes a minute to see that the first has ended
    )
    log = (work_dir / f"job-{number}.log").open("w")
    words = [*ISOLATED, "sh", "-c", f"cd {shlex.quote(str(work_dir))} && exec bash job"]
    return machine.popen(words, env=env, stdout=log, stderr=log)


def wait_until_trained(run_dir: Path, step: int, job: subprocess.Popen[str], log: Path) -> None:
    end = time.monotonic() + END_S
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count('"loss"') < step:
        assert job.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)


@pytest.mark.cluster
def test_a_job_that_gets_notice_is_queued_again_and_the_next_one_ends_the_run(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    for name in ("steps", "programs"):
        (tmp_path / name).mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        program = tmp_path / "programs" / name
        program.write_text(f"#!/usr/bin/env bash\n{text}")
        program.chmod(0o755)
    run_dir = tmp_path / "run"
    config = write_config(
        tmp_path, run=TINY["run"] | {"num_steps": STEPS}, rollout=TINY["rollout"] | {"num_workers": 2}
    )
    (tmp_path / "job").write_text(job_script(config, run_dir))
    with machines(("one", "two"), shared=(tmp_path,)) as net, steps_on(net["two"], tmp_path / "steps"):
        job = started(net["one"], tmp_path, 1)
        wait_until_trained(run_dir, 3, job, tmp_path / "job-1.log")
        psutil.Process(job.pid).children()[0].send_signal(signal.SIGUSR1)
        assert job.wait(END_S) == 130, (tmp_path / "job-1.log").read_text()
        assert (tmp_path / "requeued").read_text() == "requeue 1\n"
        assert summary(run_dir)["status"] == "stopped"
        job = started(net["one"], tmp_path, 2)
        assert job.wait(END_S) == 0, (tmp_path / "job-2.log").read_text()
    found = summary(run_dir)
    assert (found["status"], found["steps"], found["balanced"]) == ("finished", STEPS, True)
    assert (tmp_path / "requeued").read_text() == "requeue 1\n"
    assert not list(tmp_path.glob(".ray-token*"))
