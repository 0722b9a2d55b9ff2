"""The pages that are made from the code say what the code says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from docs.generated import PAGES, comments
from miles_async.config.schema import EvalDataset, RunConfig

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_is_made_from_the_code_is_current(page: str) -> None:
    assert (DOCS / page).read_text() == PAGES[page](), f"docs/{page} is old: make docs"


@pytest.mark.parametrize("section", [*(s.type for s in msgspec.structs.fields(RunConfig)), EvalDataset])
def test_every_key_says_what_it_is(section: type[msgspec.Struct]) -> None:
    assert set(section.__struct_fields__) == set(comments(section))
