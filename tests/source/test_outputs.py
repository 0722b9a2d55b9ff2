"""Output in the pages came from the commands beside it, and still does; no block shows output that has no command."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pages import PAGES, SHELL, blocks

from docs.outputs import difference, outputs, renewed, settled, shape

TYPED = re.compile(
    r"(make|miles-async|kill|grep|docker|export|sbatch|python3?|curl|ray|pip|uv|\.) |\.venv/bin/|[A-Za-z_]+="
)
WITH_OUTPUT = [page for page in PAGES if outputs(page.read_text())]


def is_output(text: str) -> bool:
    """Whether a block without a language is neither commands, nor a configuration, nor a sketch."""
    if "►" in text:
        return False
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        lines = text.replace("\\\n", " ").splitlines()
        return not all(TYPED.match(line) for line in lines if line.strip())
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_of_a_page_is_output_without_its_command(page: Path) -> None:
    said = {output.line - 1: output.command for output in outputs(page.read_text())}
    assert [block.line for block in blocks(page, "text", "console") if block.line not in said] == []
    assert [block.line for block in blocks(page, "") if is_output(block.text)] == []
    typed = "\n".join(block.text for block in blocks(page, *SHELL))
    assert [command for command in said.values() if command not in typed] == []


def test_pasted_output_is_told_from_commands() -> None:
    assert is_output("steps  200 in 407.7 s\nlag    max 4\n")
    assert not is_output("miles-async runs \\\n  --json\n") and not is_output("[learner]\nlr = 1\n")


@pytest.mark.parametrize("page", WITH_OUTPUT, ids=lambda page: page.name)
def test_what_a_page_shows_is_what_its_command_prints(page: Path) -> None:
    for output, came in renewed(page.read_text()):
        assert difference(output.text, came) is None, f"{page.name}:{output.line}: {output.command}"


def test_there_is_output_to_look_at() -> None:
    assert len(WITH_OUTPUT) >= 2


def test_numbers_times_paths_and_widths_may_differ_and_words_may_not() -> None:
    written = "at 2026-01-01 10:00:00 in /tmp/a/b   1,024 tokens\n────\nlag 4\n"
    assert difference(written, "at 2027-02-02T11:11:11 in /var/c 7 tokens\n──\nlag 8\n") is None
    assert difference(written, written.replace("lag", "age")) == (2, "lag 4", "age 4")
    assert difference(written, written + "more\n") == (3, "", "more")
    assert shape("took 1.5e-07 s") == "took N s"


def test_a_page_does_not_show_where_its_commands_were_run() -> None:
    assert settled("\nwrote /tmp/x/a.json   \n", "/tmp/x") == "wrote DIR/a.json\n"
