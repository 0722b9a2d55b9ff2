"""The documents lead somewhere, and what they tell a reader to do first does not spoil what they tell next."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = ("bus", "miles_async", "miles_async/*", "actors", "benchmarks", "tests", "tests/support", "examples", "docs")


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def is_there(path: str) -> bool:
    """As the documents name a file of the code: from the root, from a package or a room, or by its name alone."""
    pattern = path.rstrip("/")
    return any(
        next(place.glob(pattern), None)
        for place in (ROOT, *(place for name in CODE for place in ROOT.glob(name) if place.is_dir()))
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_every_file_of_the_code_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    named = re.findall(
        r"`((?:[\w*-]+/)*[\w*-]+\.(?:py|lua|sh))`|`((?:bus|miles_async|actors|tests|benchmarks)/[\w/]*)`", text
    )
    assert not [path for file, directory in named if not is_there(path := file or directory)]


def test_the_directory_of_runs_that_the_quickstart_makes_does_not_change_what_lint_says(tmp_path: Path) -> None:
    for name in ("runs", "tests"):
        (tmp_path / name).mkdir()
    (tmp_path / "runs" / "a.jsonl").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tests" / "runs" / "test_examples.py", tmp_path / "tests")
    ruff = [str(Path(sys.executable).parent / "ruff"), "check", "--no-cache", "--select", "I"]
    done = subprocess.run(ruff, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
