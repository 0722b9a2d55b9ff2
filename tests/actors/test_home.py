"""The run directory: one launch at a time, an identity that a power cut does not take, and what each launch was."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from actors.runtime.home import RunHome
from miles_async.cli.load import parse
from miles_async.runs import launches
from miles_async.runs.lock import RunInUseError, RunLock, holder
from miles_async.runs.state import STATE_FILE, living
from miles_async.train import checkpoint

CONFIG = '[model]\nhf_checkpoint = "here"\n[data]\nprompt_data = "here"\n[router]\napi_key = "hush"\n'


def config(text: str = ""):
    return parse(CONFIG + text, check=False)


def test_of_launches_that_begin_at_the_same_instant_one_enters(tmp_path: Path) -> None:
    start, entered, refused = threading.Barrier(8), list[RunHome](), list[str]()

    def enter() -> None:
        home = RunHome(tmp_path / "new" / "run")
        start.wait()
        try:
            home.enter()
            entered.append(home)
        except RunInUseError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 1 and len(refused) == 7
    assert all(text.endswith(f"is in use by a launch that is alive (pid {os.getpid()})") for text in refused)
    entered[0].leave()
    assert holder(tmp_path / "new" / "run") is None


def test_a_killed_launch_is_dead_also_while_nobody_has_waited_for_it(tmp_path: Path) -> None:
    code = f"from miles_async.runs.lock import RunLock; from pathlib import Path; RunLock(Path({str(tmp_path)!r})).take()\n"
    code += "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    launch = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert launch.stdout is not None
    child = int(launch.stdout.readline())
    try:
        assert holder(tmp_path) == launch.pid
        assert (found := living(tmp_path)) is not None and found.pid == launch.pid
        launch.kill()
        os.waitid(os.P_PID, launch.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays unreaped
        assert holder(tmp_path) is None  # though a process that it started lives on
        assert living(tmp_path) is None
        RunLock(tmp_path).take()
    finally:
        os.kill(child, 9)
        launch.wait()
        launch.stdout.close()


@pytest.mark.parametrize("emptied", [b"", b"\0" * 120])
def test_a_run_whose_supervisor_file_a_power_cut_emptied_goes_on_as_itself(tmp_path: Path, emptied: bytes) -> None:
    home = RunHome(tmp_path)
    assert not home.enter()
    launches.add(tmp_path, config(), home.state.run_id, home.state.incarnation)
    used = [home.next_incarnation() for _ in range(3)]
    home.leave()
    (tmp_path / STATE_FILE).write_bytes(emptied)
    again = RunHome(tmp_path)
    assert again.enter()
    assert again.state.run_id == home.state.run_id
    assert again.state.incarnation > max(used)
    again.leave()


def test_where_no_launch_is_on_record_the_checkpoint_says_whose_the_run_is(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    state = checkpoint.LearnerState(version=3, extra={"run_id": "run-1", "incarnation": 7})
    checkpoint.commit(root, checkpoint.begin(root, 3), state, keep=2)
    (tmp_path / STATE_FILE).write_bytes(b"")
    home = RunHome(tmp_path)
    assert home.enter()
    assert home.state.run_id == "run-1" and home.state.incarnation > 7
    home.leave()


def test_the_checkpoints_of_another_run_do_not_say_whose_a_new_directory_is(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    state = checkpoint.LearnerState(version=3, extra={"run_id": "run-1", "incarnation": 7})
    checkpoint.commit(root, checkpoint.begin(root, 3), state, keep=2)
    home = RunHome(tmp_path)
    assert not home.enter()
    assert home.state.run_id != "run-1"
    home.leave()


def test_what_only_processes_that_are_gone_had_a_use_for_is_removed(tmp_path: Path) -> None:
    socket = Path(tempfile.mkdtemp(prefix="miles-bus-"))
    killed = RunHome(tmp_path)
    killed.enter()
    killed.announce(f"unix://{socket}/redis.sock", 1)
    (tmp_path / "rendezvous-1").touch()
    killed._lock.release()  # as its end does
    home = RunHome(tmp_path)
    assert home.enter()
    assert not socket.exists() and not (tmp_path / "rendezvous-1").exists()
    (tmp_path / "rendezvous-2").touch()
    home.leave()
    assert not (tmp_path / "rendezvous-2").exists()


def test_each_launch_keeps_its_configuration_and_its_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["miles-async", "launch", "run.toml", "--set", "router.api_key=hush", "--set=learner.lr=0.1"]
    monkeypatch.setattr(sys, "argv", argv)
    assert launches.add(tmp_path, config(), "run-1", 1) == 1
    assert launches.add(tmp_path, config("[learner]\nlr = 0.1\n"), "run-1", 9) == 2
    first, second = (json.loads((tmp_path / "launches" / f"{n}.json").read_text()) for n in (1, 2))
    assert (first["launch"], second["launch"], second["incarnation"]) == (1, 2, 9)
    assert second["command"] == [*argv[:4], "router.api_key=***", "--set=learner.lr=0.1"]
    assert first["machine"]["cores"] >= 1 and first["packages"]["numpy"] and first["python"].startswith("3.")
    assert len(first["commit"]["id"]) == 40
    assert parse((tmp_path / "launches" / "1.toml").read_text(), check=False).learner.lr == 1e-6
    assert parse((tmp_path / "launches" / "2.toml").read_text(), check=False).learner.lr == 0.1
    for file in (tmp_path / "launches").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and b"hush" not in file.read_bytes()


def test_the_configuration_of_an_earlier_launch_is_found_also_where_the_newest_file_is_empty(tmp_path: Path) -> None:
    assert launches.last_config(tmp_path) is None
    launches.add(tmp_path, config(), "run-1", 1)
    launches.add(tmp_path, config("[learner]\nlr = 0.1\n"), "run-1", 2)
    (tmp_path / "config.toml").write_bytes(b"")
    assert (found := launches.last_config(tmp_path)) and found["learner"]["lr"] == 0.1
    (tmp_path / "launches" / "2.toml").write_bytes(b"\0\0\0")
    assert (found := launches.last_config(tmp_path)) and found["learner"]["lr"] == 1e-6
