"""On several workers, as `make test` runs them, a file's tests share one: their fixtures are made once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_test_command_gives_each_file_to_one_worker(tmp_path: Path) -> None:
    command = re.search(r"-m pytest (-n .*)", (REPOSITORY / "Makefile").read_text())
    assert command, "make test no longer names its workers"
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tmp_path)
    for name in ("test_a", "test_b", "test_runs", "test_sglang_a", "test_sglang_b"):
        (tmp_path / f"{name}.py").write_text("\n".join(f"def test_{n}(): pass" for n in range(12)))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "--rootdir", tmp_path, *command[1].split(), tmp_path],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    workers = defaultdict(set)
    for worker, group in re.findall(r"\[(gw\d+)\].* PASSED .*@(\w+)", done.stdout):
        workers[group].add(worker)
    assert {group: len(of_group) for group, of_group in workers.items()} == {
        "test_a": 1,
        "test_b": 1,
        "test_runs": 1,
        "sglang": 1,
    }
