"""The pages that are made from the code say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from docs.generated import PAGES, comments
from miles_async.cli.hook_points import CHOICES, HOOKS
from miles_async.config.schema import EvalDataset, RunConfig
from miles_async.hooks.hook import Hook
from miles_async.staleness.choice import POLICY

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_is_made_from_the_code_is_current(page: str) -> None:
    assert (DOCS / page).read_text() == PAGES[page](), f"docs/{page} is old: make docs"


@pytest.mark.parametrize("section", [*(s.type for s in msgspec.structs.fields(RunConfig)), EvalDataset])
def test_every_key_says_what_it_is(section: type[msgspec.Struct]) -> None:
    assert set(section.__struct_fields__) == set(comments(section))


SECTIONS = {section.name: section.type for section in msgspec.structs.fields(RunConfig)}


def comment_of(path: str) -> str:
    """What the comment of a key says, the key as ``section.key``."""
    section, _, key = path.partition(".")
    return comments(SECTIONS[section])[key]


@pytest.mark.parametrize("hook", [*(choice.hook for choice in CHOICES), POLICY], ids=lambda hook: hook.key)
def test_the_comment_of_a_key_whose_values_have_a_table_names_all_of_them(hook: Hook) -> None:
    assert [name for name in hook.built_in if f'"{name}"' not in comment_of(hook.key)] == []


def test_a_comment_that_says_what_a_function_is_called_with_says_what_its_hook_says() -> None:
    compared = 0
    for key in dict.fromkeys(hook.key for hook in HOOKS):
        if said := re.search(r"(?:function|path to(?: async)?|def \w+) ?\(([\w, ]+)\)", comment_of(key)):
            called_with = [", ".join(hook.parameters) for hook in HOOKS if hook.key == key]
            assert said[1] in called_with, key
            compared += 1
    assert compared >= 5
