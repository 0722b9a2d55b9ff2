"""The documents lead somewhere, and what they tell a reader to do first does not spoil what they tell next."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, ROOT, blocks

from docs import site_links

CODE = ("bus", "miles_async", "miles_async/*", "actors", "benchmarks", "tests", "tests/support", "examples", "docs")


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {site_links.anchor(title) for title in titles}


def is_there(path: str) -> bool:
    """As the documents name a file of the code: from the root, from a package or a room, or by its name alone."""
    pattern = path.rstrip("/")
    return any(
        next(place.glob(pattern), None)
        for place in (ROOT, *(place for name in CODE for place in ROOT.glob(name) if place.is_dir()))
    )


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
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
    written = {block.name for block in blocks(document, "python")}  # by the reader
    assert not [path for file, directory in named if (path := file or directory) not in written and not is_there(path)]


def test_the_directory_of_runs_that_the_quickstart_makes_does_not_change_what_lint_says(tmp_path: Path) -> None:
    for name in ("runs", "tests"):
        (tmp_path / name).mkdir()
    (tmp_path / "runs" / "a.jsonl").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tests" / "runs" / "test_examples.py", tmp_path / "tests")
    ruff = [str(Path(sys.executable).parent / "ruff"), "check", "--no-cache", "--select", "I"]
    done = subprocess.run(ruff, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def entries(contents: Any) -> Iterator[str]:
    """The pages in a part of the site's contents."""
    if isinstance(contents, str):
        yield contents
    for part in contents.values() if isinstance(contents, dict) else contents if isinstance(contents, list) else ():
        yield from entries(part)


def test_the_contents_of_the_site_have_every_page_once_and_nothing_else() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(entries(site["nav"])) == sorted(page.name for page in PAGES if page.name != "README.md")


def test_a_file_that_a_page_links_to_outside_of_docs_is_a_file_of_the_site() -> None:
    text = "see [a](../examples/sync.toml), [b](../README.md#the-loop) and [c](web.md#there)"
    assert site_links.linked(text) == {"examples/sync.toml", "README.md"}
    placed = "see [a](source/examples/sync.toml), [b](source/README.md.txt) and [c](web.md#there)"
    assert site_links.on_page_markdown(text) == placed


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link href="//fonts.example/a.css" rel="stylesheet">',
        '<img alt="a" src=http://a.example/b.png>',
    ],
)
def test_a_page_that_would_load_something_from_elsewhere_is_noticed(tag: str) -> None:
    own = '<script src="assets/a.js"></script><a href="https://a.example">a</a><img src="loop.svg">'
    assert site_links.from_elsewhere(own) == "" and site_links.from_elsewhere(own + tag) == tag.removesuffix(
        "</script>"
    )
