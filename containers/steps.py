"""The steps of a Dockerfile, read, and carried out in a directory where there is no Docker.

    python -m containers.steps [DIRECTORY]        # those of containers/Dockerfile, for minutes: make container-steps

Promises: what is carried out is what the file says, in its order, with its variables, and below the directory: paths that are
absolute in the image lie there. What asks for root (the distribution's packages, the user) is named and left out. The
first step that fails ends it with that step's exit code. Only the standard library is needed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
AS_ROOT = "apt-get"  # the first word of steps that an image's root takes
PLACES = ("/opt", "/work", "/shared")  # of the image
BEFORE = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")  # that an image does not have


class Instruction(NamedTuple):
    """One of a Dockerfile. ``line``: where it begins."""

    name: str
    argument: str
    line: int


def instructions(file: Path) -> Iterator[Instruction]:
    """Of ``file``, in order; lines that go on are one. Raises ValueError: a line is none."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun or number
        parts.append(line.strip().removesuffix("\\").strip())
        if line.rstrip().endswith("\\"):
            continue
        name, _, argument = " ".join(parts).partition(" ")
        if not name.isupper() or not argument:
            raise ValueError(f"{file}:{begun}: no instruction: {name}")
        yield Instruction(name, argument, begun)
        begun, parts = 0, []


def copied(argument: str) -> tuple[list[Path], str]:
    """What a COPY takes, from the checkout, and where it goes."""
    *sources, place = shlex.split(argument)
    return [ROOT / source for source in sources], place


class Scratch:
    """An image's file system below ``root``, as far as steps have made it."""

    def __init__(self, root: Path) -> None:
        self.root, self.work_dir = root, root
        self.environment = {name: value for name, value in os.environ.items() if name not in BEFORE}

    def inside(self, text: str) -> str:
        """``text`` with the image's places below the root."""
        return re.sub(rf"(?<![\w.])({'|'.join(PLACES)})(?=[/\s:]|$)", rf"{self.root}\1", text)

    def env(self, argument: str) -> None:
        for part in shlex.split(argument):
            name, _, value = part.partition("=")
            old = self.environment.get(name, "")
            self.environment[name] = self.inside(value).replace(f"${name}", old)

    def workdir(self, argument: str) -> None:
        self.work_dir = Path(self.inside(argument))
        self.work_dir.mkdir(parents=True, exist_ok=True)

    def copy(self, argument: str) -> None:
        sources, place = copied(argument)
        for source in sources:
            target = self.work_dir / place
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy(source, target)

    def run(self, argument: str) -> int:
        """The exit code."""
        command = ["bash", "-e", "-c", self.inside(argument)]
        return subprocess.run(command, cwd=self.work_dir, env=self.environment, check=False).returncode


def carry_out(file: Path, root: Path) -> int:
    """All steps of ``file`` below ``root``; the exit code."""
    scratch = Scratch(root)
    for step in instructions(file):
        print(f"{step.name} {step.argument}", flush=True)
        if step.name == "RUN" and step.argument.startswith(AS_ROOT):
            print("  left out: it asks for an image's root", flush=True)
        elif step.name == "RUN" and (code := scratch.run(step.argument)):
            return code
        elif step.name in ("ENV", "WORKDIR", "COPY"):
            getattr(scratch, step.name.lower())(step.argument)
        elif step.name == "CMD" and (code := scratch.run("miles-async --version && miles-async doctor")):
            return code
    return 0


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="container-"))
    print(f"below {place}")
    sys.exit(carry_out(ROOT / "containers" / "Dockerfile", place))
