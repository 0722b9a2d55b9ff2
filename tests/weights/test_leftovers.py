"""What runs leave of their weights in memory: a living run's is never touched, a dead one's goes, and both is said."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from actors.runtime.memory import SnapshotRoom
from miles_async.cli import app as cli
from miles_async.config.schema import Data, Model, RunConfig
from miles_async.evaluation.record import EvalRecord
from miles_async.runs.lock import RunLock
from miles_async.runs.points import Point
from miles_async.weights import place as places
from miles_async.weights.leftovers import sweep
from miles_async.weights.place import claim, in_memory

CONFIG = RunConfig(model=Model(hf_checkpoint="none"), data=Data(prompt_data="none"))


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "shm"
    root.mkdir()
    monkeypatch.setattr(places, "MEMORY_ROOT", root)
    yield root


def ran(run_dir: Path, *snapshots: str, n_bytes: int = 1000) -> Path:
    """A run that was killed: its place, which nobody holds."""
    run_dir.mkdir(exist_ok=True)
    place = claim(run_dir)
    assert place is not None
    for name in snapshots:
        (place.root / name).mkdir()
        (place.root / name / "model.safetensors").write_bytes(b"x" * n_bytes)
    place.let_go()
    return run_dir


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in in_memory(run_dir).iterdir()) if in_memory(run_dir).exists() else []


def clean(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["clean", *(str(argument) for argument in arguments)])


async def play(run_dir: Path, *snapshots: str, keep_pins: bool) -> tuple[str, list[dict[str, object]]]:
    """A launch that writes ``snapshots``; what stays, and what it told."""
    told: list[dict[str, object]] = []
    room = SnapshotRoom(CONFIG, run_dir)
    await room.begin(keep_pins=keep_pins, tell=lambda kind, **data: told.append({"kind": kind, **data}))
    for name in snapshots:
        (in_memory(run_dir) / name).mkdir()
        (in_memory(run_dir) / name / "model.safetensors").write_bytes(b"x" * 2_000_000)
    return room.end(keep_pins=keep_pins), told


async def test_nothing_is_left_in_memory_once_a_launch_has_ended(tmp_path: Path, memory: Path) -> None:
    (tmp_path / "snapshots" / "i0001-v00000001").mkdir(parents=True)  # of an earlier launch, when memory had no room
    assert await play(tmp_path, "i0001-v00000001", "i0001-v00000002", keep_pins=False) == (
        "",
        [{"kind": "swept", "run": str(tmp_path), "place": str(tmp_path / "snapshots"), "bytes": 0}],
    )
    assert os.listdir(memory) == [] and os.listdir(tmp_path) == ["shm"]


async def test_what_waits_for_an_evaluation_stays_and_is_said_and_clean_takes_it(tmp_path: Path, memory: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    EvalRecord(run_dir / "eval").add(Point(2, 1, "made", 1.0))
    words, _ = await play(run_dir, "i0001-v00000004", "eval-i0001-v00000002", "eval-i0001-v00000004", keep_pins=True)
    assert words == (
        f"eval-i0001-v00000004 (2.0 MB) stay in {in_memory(run_dir)} for evaluations that the run makes when it goes on; "
        f"`miles-async clean {run_dir}` removes them"
    )
    assert names(run_dir) == ["eval-i0001-v00000004", "run"]
    assert sweep() == []  # another launch leaves it
    _, told = await play(run_dir, keep_pins=True)  # and so does the run itself, to the evaluator
    assert told == [] and names(run_dir) == ["eval-i0001-v00000004", "run"]
    found = json.loads(clean(run_dir, "--json").stdout)
    assert found["bytes"] == 2_000_000 + len(str(run_dir))
    assert [removed["removed"] for removed in found["removed"]] == [["eval-i0001-v00000004"]]
    assert os.listdir(memory) == []
    assert clean(run_dir).stdout == "nothing to remove\n"


async def test_a_launch_sweeps_what_a_killed_one_left_and_nothing_of_one_that_lives(tmp_path: Path) -> None:
    dead = ran(tmp_path / "dead", "i0001-v00000001", "i0001-v00000002", "eval-i0001-v00000002")
    gone = ran(tmp_path / "gone", "eval-i0001-v00000001")
    alive = ran(tmp_path / "alive", "i0001-v00000001")
    gone.rmdir()
    held = claim(alive)
    assert held is not None
    _, told = await play(ran(tmp_path / "mine", "i0001-v00000007"), keep_pins=True)
    assert {str(event["run"]) for event in told} == {str(dead), str(gone), str(tmp_path / "mine")}
    assert names(dead) == ["eval-i0001-v00000002", "run"]  # which its resume makes a point of
    assert names(gone) == []
    assert names(alive) == ["i0001-v00000001", "run"]
    held.let_go()


def test_clean_takes_what_dead_runs_left_and_refuses_one_that_lives(tmp_path: Path) -> None:
    dead = ran(tmp_path / "dead", "i0001-v00000001", "eval-i0001-v00000001")
    alive = ran(tmp_path / "alive", "i0001-v00000001")
    held, lock = claim(alive), RunLock(alive)
    lock.take()
    assert held is not None
    refused = clean(alive)
    assert refused.exit_code == 2 and "alive" in refused.stderr and refused.stderr.endswith("nothing was removed\n")
    result = clean()
    assert result.exit_code == 0 and str(dead) in result.stdout and str(alive) not in result.stdout
    assert names(dead) == [] and names(alive) == ["i0001-v00000001", "run"]
    missing = clean(tmp_path / "none")
    assert missing.exit_code == 2 and "no such directory" in missing.stderr
    lock.release()
    held.let_go()


def test_a_killed_launch_holds_its_place_no_more(tmp_path: Path, memory: Path) -> None:
    code = "import sys; from pathlib import Path; from miles_async.weights import place\n"
    code += "place.MEMORY_ROOT = Path(sys.argv[1]); held = place.claim(Path(sys.argv[2])); print(flush=True); input()"
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    launch = subprocess.Popen([sys.executable, "-c", code, str(memory), str(run_dir)], **pipes)
    assert launch.stdout is not None and launch.stdin is not None
    launch.stdout.readline()
    (in_memory(run_dir) / "i0001-v00000001").mkdir()
    assert sweep() == [] and names(run_dir) == ["i0001-v00000001", "run"]
    launch.kill()
    os.waitid(os.P_PID, launch.pid, os.WEXITED | os.WNOWAIT)
    assert [removed.run_dir for removed in sweep()] == [str(run_dir)] and names(run_dir) == []
    launch.communicate()


def test_a_launch_that_begins_while_its_place_is_swept_gets_one_that_stays(tmp_path: Path) -> None:
    """Many times, so that every order of the two occurs; the place that is held is the one under the name."""
    stop = threading.Event()

    def sweeping() -> None:
        while not stop.is_set():
            sweep()

    sweeper = threading.Thread(target=sweeping)
    sweeper.start()
    try:
        for number in range(30):
            run_dir = ran(tmp_path / "run", f"i0001-v{number:08d}")
            held = claim(run_dir)
            assert held is not None
            (held.root / "mine").mkdir(exist_ok=True)
            assert "mine" in names(run_dir) and held.run_dir == run_dir
            held.let_go()
    finally:
        stop.set()
        sweeper.join()


@pytest.mark.parametrize("step", ["open", "flock"])
def test_a_place_that_is_removed_before_it_is_held_is_made_again(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    root, module = in_memory(tmp_path), os if step == "open" else fcntl
    real = getattr(module, step)

    def late(*arguments: Any) -> Any:
        monkeypatch.undo()
        monkeypatch.setattr(places, "MEMORY_ROOT", memory)
        root.rename(memory / "removed")
        return real(*arguments)

    monkeypatch.setattr(module, step, late)
    held = claim(tmp_path)
    assert held is not None and (memory / "removed").is_dir()
    assert names(tmp_path) == ["run"] and places.hold(root) is None  # what is held is what lies there
    held.let_go()


def test_a_place_whose_owner_is_not_known_or_is_another_user_is_left_alone(tmp_path: Path, memory: Path) -> None:
    (memory / f"miles_async-{os.getuid()}-0123456789ab" / "i0001-v00000001").mkdir(parents=True)
    (memory / f"miles_async-{os.getuid() + 1}-0123456789ab" / "i0001-v00000001").mkdir(parents=True)
    (memory / f"miles_async-{os.getuid()}-link").symlink_to(tmp_path)
    assert sweep(keep_pins=False) == [] and len(list(memory.iterdir())) == 3
    assert msgspec.json.decode(clean("--json").stdout)["removed"] == []
