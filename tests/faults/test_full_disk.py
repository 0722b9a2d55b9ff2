"""A full disk under a run: nothing dies of it for good, what was not written is written when there is room, no traceback.

In the small the disk is full by a limit on this process' files (RLIMIT_FSIZE, which nobody needs a right for); the whole run
lies on a tmpfs, for which the test has to be allowed to mount one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from launching import TINY, begin, events, left_behind, summary, wait_for_step, wait_until, write_config
from monitored import config

from actors.runtime.full_disk import died_of_it
from actors.runtime.home import RunHome
from actors.runtime.logs import log_beside_the_actors
from bus.messages import Metrics, Transition
from miles_async.disk import room as disk_room
from miles_async.monitor import Monitor, record
from miles_async.monitor.record import RecordWriter
from miles_async.monitor.record_lines import read_events, read_metrics, read_transitions, transition_line
from miles_async.runs import state
from miles_async.train import checkpoint
from miles_async.weights import place
from miles_async.weights.snapshot import load_snapshot, specs_of, write_where_there_is_room

DEADLINE_S = 60.0


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """This process can write nothing to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def step(number: int) -> Metrics:
    return Metrics(actor="learner-0", step=number, time=float(number), values={"raw_reward": 0.5, "n_samples": 8.0})


def test_the_record_waits_for_room_and_is_whole_then_and_nothing_counts_as_written_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_AGAIN_S", 0.02)
    writer = RecordWriter(tmp_path, tensorboard=True, keep=False)
    for number in range(1, 4):
        writer.add(transition_line(f"{number}-0", Transition(kind="admitted", group_ids=(f"0-{number}-0",))))
        writer.add(step(number))
    until(lambda: writer.written_entry == "3-0", "the first entries are written")
    with full_disk():
        for number in range(4, 40):
            writer.add(transition_line(f"{number}-0", Transition(kind="admitted", group_ids=(f"0-{number}-0",))))
            writer.add(record.EventLine("a", "k", 0.0, {}, f"{number}-1"))
            writer.add(step(number))
        writer.add(step(2))  # the learner went back: the metrics are written anew
        until(lambda: bool(writer.trouble), "the disk refuses")
        assert writer.written_entry == "3-0" and not writer.error
    writer.close()
    assert not writer.error and not writer.trouble and writer.written_entry == "39-1"
    assert [line.id for line in read_transitions(tmp_path)] == [f"{number}-0" for number in range(1, 40)]
    assert [line.id for line in read_events(tmp_path)] == [f"{number}-1" for number in range(4, 40)]
    assert [line.step for line in read_metrics(tmp_path)] == [1, 2]


def test_the_terminal_says_that_the_record_waits_and_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_AGAIN_S", 0.02)
    said = io.StringIO()
    monitor = Monitor(stream=said)
    monitor.start(config(tensorboard=False, live="off"), tmp_path, resumed=False)
    with full_disk():
        monitor.on_metrics(step(1))
        until(lambda: monitor.record_waits, "the disk refuses")
        monitor.on_metrics(step(2))
    until(lambda: not monitor.record_waits, "there is room")
    monitor.on_metrics(step(3))
    monitor.finish("stopped", {})
    told = [line for line in said.getvalue().splitlines() if line.startswith("supervisor: record")]
    assert told[0].startswith("supervisor: record_waits cause=") and told[1:] == ["supervisor: record_goes_on"]
    assert [line.step for line in read_metrics(tmp_path) if line.actor == "learner-0"] == [1, 2, 3]


def test_a_record_that_is_given_up_has_not_counted_what_is_not_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_CLOSE_TIMEOUT_S", 0.3)
    writer = RecordWriter(tmp_path, tensorboard=False, keep=False)
    with full_disk():
        writer.add(transition_line("1-0", Transition(kind="admitted", group_ids=("0-0-0",))))
        until(lambda: bool(writer.trouble), "the disk refuses")
        writer.close()
    assert writer.written_entry == "0" and "the disk did not take the record" in writer.error


def test_the_supervisor_goes_on_without_its_file_and_no_number_is_given_twice(tmp_path: Path) -> None:
    home = RunHome(tmp_path)
    home.enter()
    with full_disk():
        used = [home.next_incarnation() for _ in range(3)]
        home.announce("unix:///here", 7)
        home.write_again()
        assert home.unwritten
    killed = state.read(tmp_path)
    assert killed is not None
    home.write_again()
    assert not home.unwritten
    assert (found := state.read(tmp_path)) is not None and found.bus_url == "unix:///here"
    state.write(tmp_path, killed)  # as a kill before there was room leaves it
    home._lock.release()
    again = RunHome(tmp_path)
    assert again.enter() and again.state.incarnation > max(used)
    with full_disk():
        again.leave()
    third = RunHome(tmp_path)
    assert third.enter() and third.state.incarnation > again.state.incarnation
    third.leave()


def test_a_line_that_the_disk_does_not_take_costs_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    log_beside_the_actors(Path("/dev/full"))
    logging.getLogger("bus").warning("refused")
    logging.getLogger("bus").handlers.clear()
    assert capfd.readouterr() == ("", "")


def test_a_death_by_a_full_disk_is_known_by_its_cause(tmp_path: Path) -> None:
    assert died_of_it("learner-0: OSError: [Errno 28] No space left on device: 'x'", tmp_path)
    assert not died_of_it("learner-0: killed by signal 9", tmp_path)


def test_a_checkpoint_that_finds_no_room_says_so_and_gives_back_what_it_had_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = checkpoint.begin(tmp_path, 3)
    (writing / "half").write_bytes(b"x")
    monkeypatch.setattr(disk_room, "LEAST_BYTES", 1 << 60)  # so this disk is full
    with pytest.raises(OSError, match="No space left on device"), disk_room.or_nothing(writing):
        raise RuntimeError("unexpected pos 64 vs 0")  # what torch says of it
    assert not writing.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a run on a full disk needs the right to mount a tmpfs: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(file: Path) -> None:
    """Take what room there is, to the last byte."""
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while out.write(b"x" * size):
                    pass


def test_a_snapshot_that_the_memory_does_not_take_any_more_lies_on_disk(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "MEMORY_ROOT", small_disk)
    (tmp_path / "config.json").write_text("{}")
    root = place.in_memory(tmp_path)
    tensors = {"w": torch.ones(1 << 20)}
    specs = specs_of(tensors.items())
    first = write_where_there_is_room(root, tmp_path, 1, 1, specs, tensors.items(), str(tmp_path))
    fill(small_disk / "filler")
    once = iter(tensors.items())  # no tensor is asked for before it is known where there is room
    second = write_where_there_is_room(root, tmp_path, 2, 1, specs, once, str(tmp_path))
    assert first.parent == root and second.parent == tmp_path / "snapshots"
    assert torch.equal(load_snapshot(second)["w"], tensors["w"])
    assert [path.name for path in root.iterdir()] == [first.name]
    with pytest.raises(OSError, match="No space left"):
        write_where_there_is_room(small_disk / "chosen", tmp_path, 3, 1, specs, tensors.items(), str(tmp_path))


def process_of(name: str, run_dir: Path) -> set[int]:
    title = f"miles-async {name} {run_dir}"
    return {p.pid for p in psutil.process_iter(["cmdline"]) if " ".join(p.info["cmdline"] or ()).startswith(title)}


def test_a_run_whose_disk_is_full_while_its_processes_die_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 4000, "max_restarts": 0},
        checkpoint={"save_interval": 10, "save_hf": False},
    )
    run_dir = small_disk / "run"
    process = begin(config, run_dir)
    wait_for_step(run_dir, 3, process)
    [before] = process_of("broadcaster", run_dir)
    fill(small_disk / "filler")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: bool(process_of("broadcaster", run_dir) - {before}), "successor of the broadcaster", process)
    (small_disk / "filler").unlink()
    kept = max(line.step for line in read_metrics(run_dir))
    wait_for_step(run_dir, kept + 12, process)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert "supervisor: state_not_written" in out and events(run_dir, "state_written")
    found = summary(run_dir)
    assert found["balanced"] and not found["troubles"]
    admitted = {group for line in read_transitions(run_dir) if line.kind == "admitted" for group in line.groups}
    assert len(admitted) == found["ledger"]["dealt"]
    assert left_behind(run_dir) == []
