"""The images of containers/ can be built from what the checkout has, and run as nobody in particular. hadolint: make lint."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from pages import ROOT

from containers.steps import Instruction, carry_out, copied, instructions

FILES = sorted((ROOT / "containers").glob("Dockerfile*"))
INSTALL = (ROOT / "requirements" / "install.sh").read_text()
every_image = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def of(file: Path, name: str) -> list[str]:
    return [step.argument for step in instructions(file) if step.name == name]


@every_image
def test_what_a_step_takes_and_calls_is_there(file: Path) -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    taken = [source for argument in of(file, "COPY") for source in copied(argument)[0]]
    assert taken and all(source.exists() and source.name in allowed for source in taken)
    targets = set(re.findall(r"^([a-z]+)\)", INSTALL, re.MULTILINE))
    called = [target for step in of(file, "RUN") for target in re.findall(r"requirements/install\.sh (\w+)", step)]
    assert called and set(called) <= targets
    for step in of(file, "RUN"):
        done = subprocess.run(["bash", "-n", "-c", step], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr


def test_what_the_installer_of_an_image_reads_is_there() -> None:
    for name in re.findall(r"-[rc] (requirements/\w+\.txt)", INSTALL):
        assert (ROOT / name).exists(), name
    pinned = {
        line.partition("==")[0].lower() for line in (ROOT / "requirements" / "constraints.txt").open() if "==" in line
    }
    for name in ("cluster", "docs"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        wanted = {re.split(r"[\[=<>; ]", line)[0].lower() for line in lines if line and line[0] != "#"}
        assert wanted and wanted <= pinned


@every_image
def test_an_image_runs_a_program_of_ours_as_an_ordinary_user(file: Path) -> None:
    (user,) = of(file, "USER")
    assert re.search(rf"useradd .*--uid {user} ", " ".join(of(file, "RUN"))) and int(user) > 0
    steps = list(instructions(file))
    last = max(number for number, step in enumerate(steps) if step.name == "RUN")
    assert [step.name for step in steps].index("USER") > last
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(of(file, "CMD")[0])[0] in scripts


@every_image
def test_an_image_begins_with_one_version_and_what_it_installs_requirements_say(file: Path) -> None:
    (base,) = of(file, "FROM")
    assert re.search(r":\d+\.\d+\.\d+[\w.-]*$", base)
    for step in of(file, "RUN"):
        assert not re.search(r"\b(pip|uv|curl|git)\b", step) and "://" not in step


def test_steps_are_carried_out_below_the_directory_up_to_the_first_that_fails(tmp_path: Path) -> None:
    file, root = tmp_path / "Dockerfile", tmp_path / "image"
    root.mkdir()
    file.write_text(
        "FROM a:1\nENV PLACE=/opt/tools\nRUN apt-get update\nWORKDIR /opt/app\n# a note\n"
        "COPY LICENSE README.md ./\nCOPY containers containers\n"
        "RUN mkdir -p /opt/tools && \\\n    cp README.md $PLACE/copy\nRUN exit 7\nRUN touch never\n"
    )
    assert list(instructions(file))[1] == Instruction("ENV", "PLACE=/opt/tools", 2)
    assert carry_out(file, root) == 7
    assert (root / "opt" / "tools" / "copy").read_text() == (ROOT / "README.md").read_text()
    assert (root / "opt" / "app" / "containers" / "steps.py").is_file() and not (
        root / "opt" / "app" / "never"
    ).exists()


def test_what_is_no_instruction_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM a:1\nRUN echo \\\n  a\nnonsense\n")
    with pytest.raises(ValueError, match=r"Dockerfile:4: no instruction: nonsense"):
        list(instructions(tmp_path / "Dockerfile"))
