"""A sweep over simulations: every cell once, also when it was interrupted; a table and a picture of all."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

from launching import left_behind, wait_until
from pyarrow import parquet
from simulations import PLAIN
from sweeps import begin, ended

from miles_async.sweeping.picture import pareto

# stops in the first cell of lag 2, for as long as there is a gate
GATED = """
from pathlib import Path
from miles_async.staleness.drop import Drop

class Gated(Drop):
    def admit(self, state):
        gate = Path(__file__).parent / "gate"
        if self.max_lag == 2 and state.batched_steps and gate.exists():  # not where it is asked before the start
            gate.read_text()
        return super().admit(state)

class Miser(Drop):
    def admit(self, state):
        return 0 if state.batched_steps else super().admit(state)

def gated(staleness, rollout):
    return Gated(staleness.max_lag)

def miser(staleness, rollout):
    return Miser(staleness.max_lag)
"""
SWEEP = """
[sweep]
simulation = "sim.toml"
directory = "out"
[set]
"staleness.policy" = "{policy}"
"simulation.num_steps" = 12
"lengths.sigma" = 1.0
[grid]
"staleness.max_lag" = [0, 1, 2, 4]
"engines.num_engines" = [1, 2, 3]
"simulation.seed" = [1, 2]
"""


def written(directory: Path) -> Path:
    """The files of a sweep of 24 cells."""
    (directory / "sim.toml").write_text(PLAIN.replace("timeline = true", ""))
    (directory / "policies.py").write_text(GATED)
    file = directory / "sweep.toml"
    file.write_text(SWEEP.format(policy=f"{directory}/policies.py:gated"))
    return file


def test_24_simulations_that_were_interrupted_go_on_and_give_the_table_and_the_picture(tmp_path: Path) -> None:
    file, out = written(tmp_path), tmp_path / "out"
    os.mkfifo(tmp_path / "gate")
    process = begin(file)
    stopped = out / "max_lag=2,num_engines=1,seed=1"
    wait_until((stopped / "sim.toml").exists, "thirteenth cell", process)
    process.send_signal(signal.SIGINT)
    ended(process, 130)
    first = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}
    assert len(first) == 12 and not any(name.startswith("max_lag=2") for name in first)
    assert left_behind(tmp_path) == []

    (tmp_path / "gate").unlink()
    found = json.loads(ended(begin(file, "--json"), 0))
    assert found["failed"] == {} and found["missing"] == [] and len(found["rows"]) == 24
    assert {name: (out / name / "summary.json").stat().st_mtime_ns for name in first} == first  # not made again
    with (out / "sweep.csv").open() as table:
        rows = [*csv.DictReader(table)]
    assert [row["cell"] for row in rows] == [row["cell"] for row in found["rows"]] and len(rows) == 24
    assert all(float(row["samples_per_s"]) > 0 and row["status"] == "simulated" for row in rows)
    assert all(float(row["max_token_lag"]) <= int(row["staleness.max_lag"]) for row in rows)
    assert sum(json.loads(rows[-1]["lag_tokens"]).values()) > 0.99
    columns = parquet.read_table(out / "sweep.parquet").to_pydict()
    assert columns["cell"] == [row["cell"] for row in rows]
    assert columns["samples_per_s"] == [row["samples_per_s"] for row in found["rows"]]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_whose_policy_cannot_progress_costs_itself_and_says_so_in_one_line(tmp_path: Path) -> None:
    file = written(tmp_path)
    grid = f'[grid]\n"staleness.policy" = ["fifo", "{tmp_path}/policies.py:miser"]\n'
    file.write_text(f'[sweep]\nsimulation = "sim.toml"\ndirectory = "out"\njobs = 2\n{grid}')
    found = json.loads(ended(begin(file, "--json"), 1))
    (bad,) = found["failed"]
    assert found["failed"] == {bad: 1} and found["missing"] == [bad] and len(found["rows"]) == 1
    said = (tmp_path / "out" / bad / "launch.log").read_text()
    assert "cannot progress: nothing goes on at version" in said and said.count("\n") == 1


def test_the_front_is_what_nothing_is_better_than_on_both_axes() -> None:
    points = [(1.0, 1.0), (2.0, 3.0), (2.0, 2.0), (3.0, 2.5), (4.0, 0.5)]
    assert pareto(points) == [(2.0, 3.0), (3.0, 2.5), (4.0, 0.5)]
    assert pareto(points, sign=-1) == [(1.0, 1.0), (2.0, 3.0)]
