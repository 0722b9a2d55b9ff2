"""A copy of the working tree in which tests run, and what they came to there.

Promises: the tree itself is never touched; what the tests import is the copy (checked once for each); a test that could not
even be collected, or whose fixture failed, is told apart from one that failed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.catalogue import ROOT, Mutation

LIMIT_S = 180.0  # for the tests of one mutation


@dataclass(frozen=True)
class Outcome:
    """What a call of pytest came to: ``verdicts`` of the tests that ran ("passed", "failed", "error"), or ``trouble``."""

    verdicts: dict[str, set[str]]  # of each test without its parameters, of all of its cases
    seconds: float
    trouble: str = ""  # it hung, or nothing was collected
    output: str = ""


class Copy:
    """A copy of the tree. Mutations are planted in it one after the other."""

    def __init__(self, directory: Path) -> None:
        """Copy what git tracks or would track. Raises RuntimeError if Python would import anything else there."""
        self.directory = directory
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, directory / name)
        self._check_imports()

    def _environment(self) -> dict[str, str]:
        # no bytecode: that of a file of the same size and second would be taken for the mutated one's
        return {**os.environ, "PYTHONPATH": str(self.directory), "PYTHONDONTWRITEBYTECODE": "1"}

    def _check_imports(self) -> None:
        code = "import bus, miles_async, actors; print(bus.__file__, miles_async.__file__, actors.__file__, sep='\\n')"
        command, environment = [sys.executable, "-c", code], self._environment()
        asked = subprocess.run(
            command, check=False, cwd=self.directory, env=environment, capture_output=True, text=True
        )
        for line in asked.stdout.splitlines() or [asked.stderr]:
            if not Path(line).is_relative_to(self.directory):
                raise RuntimeError(f"the copy in {self.directory} would test {line}")

    def with_mutation(self, mutation: Mutation) -> Outcome:
        """Plant the bug, run its tests, take it out again. Raises DoesNotApply."""
        path = self.directory / mutation.file
        text = path.read_text()
        path.write_text(mutation.applied(text))
        try:
            return self.run(mutation.tests)
        finally:
            path.write_text(text)

    def run(self, tests: Sequence[str], limit_s: float = LIMIT_S) -> Outcome:
        """Run ``tests`` in this copy."""
        report = self.directory / ".mutations.xml"
        report.unlink(missing_ok=True)
        started = time.monotonic()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--no-header",
                "-p",
                "no:cacheprovider",
                f"--junitxml={report}",
                *tests,
            ],
            cwd=self.directory,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return Outcome({}, time.monotonic() - started, f"hung for {limit_s:.0f} s", output)
        seconds = time.monotonic() - started
        if process.returncode not in (0, 1):  # 2 to 5: interrupted, not collected, misused, nothing to run
            return Outcome({}, seconds, f"pytest ended with {process.returncode}", output)
        return Outcome(_verdicts(report), seconds, output=output)


def _verdicts(report: Path) -> dict[str, set[str]]:
    verdicts: dict[str, set[str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        node = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
        kinds = {child.tag for child in case}
        verdict = "failed" if "failure" in kinds else "error" if "error" in kinds else "passed"
        verdicts.setdefault(node, set()).add("skipped" if "skipped" in kinds else verdict)
    return verdicts
