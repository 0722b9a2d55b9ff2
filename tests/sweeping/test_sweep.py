"""A sweep runs every cell once, also when it was interrupted, and leaves a table and a picture."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

from launching import TINY, left_behind, metrics, wait_for_step, wait_until, write_config
from sweeps import begin, ended

SWEEP = """
[sweep]
config = "run.toml"
directory = "out"
[set]
"monitor.live" = "off"
[grid]
"run.num_steps" = [2, 120]
"run.seed" = [1]
"""


def test_a_sweep_that_was_killed_and_interrupted_goes_on_with_what_is_not_finished(tmp_path: Path) -> None:
    write_config(tmp_path, run=TINY["run"])
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP)
    short, long = (tmp_path / "out" / f"num_steps={steps},seed=1" for steps in (2, 120))

    process = begin(file)
    wait_until((long / "supervisor.json").exists, "second cell", process)
    wait_for_step(long, 3, process)
    process.kill()
    process.communicate()
    process = begin(file)  # which waits until the launch of the one that was killed has stopped
    wait_until(lambda: len(list((long / "launches").glob("*.toml"))) == 2, "second launch", process)
    wait_for_step(long, max(line["step"] for line in metrics(long)) + 3, process)
    process.send_signal(signal.SIGINT)
    ended(process, 130)
    first = (short / "summary.json").read_bytes()
    stopped = json.loads((long / "summary.json").read_text())
    assert json.loads(first)["status"] == "finished" and stopped["status"] == "stopped"
    assert left_behind(tmp_path) == []

    file.write_text(SWEEP.replace("120", "301"))
    assert "was begun with another sweep" in begin(file).communicate(timeout=300)[1]

    file.write_text(SWEEP)
    ended(begin(file), 0)
    assert (short / "summary.json").read_bytes() == first  # not run again
    finished = json.loads((long / "summary.json").read_text())
    assert finished["status"] == "finished" and finished["starts"] == 3 and finished["steps"] == 120
    with (tmp_path / "out" / "sweep.csv").open() as table:
        assert [row["steps"] for row in csv.DictReader(table)] == ["2", "120"]


def test_every_cell_is_a_row_and_one_that_fails_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def bad(sample):\n    raise OSError('no grader')\n")
    write_config(tmp_path, run=TINY["run"] | {"num_steps": 2})
    file = tmp_path / "sweep.toml"
    grid = f'"reward.rm_type" = ["graded_match", "{tmp_path}/rewards.py:bad"]'
    file.write_text(f'[sweep]\nconfig = "run.toml"\ndirectory = "out"\njobs = 2\n[grid]\n{grid}\n')
    assert len(json.loads(ended(begin(file, "--dry-run", "--json"), 0))) == 2
    assert not (tmp_path / "out").exists()

    found = json.loads(ended(begin(file, "--json"), 1))
    (bad,) = found["failed"]
    assert "rewards.py-bad" in bad and found["missing"] == [bad]
    with (tmp_path / "out" / "sweep.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert row["cell"] == "rm_type=graded_match" and row["steps"] == "2" and float(row["samples_per_s"]) > 0
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
