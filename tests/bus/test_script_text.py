"""bus/script_text.py: which definitions a script is given."""

from __future__ import annotations

from bus import positions
from bus.ledger_scripts import _SCRIPTS
from bus.script_text import with_parts

PARTS = """-- what is shared
local A = 1
local function b()
  return A -- not c
end

-- of c
local function c()
  return 'b'
end
"""


def test_a_script_gets_the_definitions_that_it_names_directly_or_by_way_of_others_in_their_order() -> None:
    text = with_parts("return b()\n", PARTS)
    assert [line for line in text.splitlines() if line.startswith("local")] == ["local A = 1", "local function b()"]
    assert text.endswith("return b()\n")


def test_names_in_comments_and_strings_and_parts_of_words_are_none() -> None:
    assert with_parts("return 'A' -- b\n", PARTS) == "return 'A' -- b\n"
    assert with_parts("return bc\n", PARTS) == "return bc\n"


def test_what_only_looks_is_not_given_what_writes() -> None:
    parts = positions.lua() + (_SCRIPTS / "prelude.lua").read_text()
    room = with_parts((_SCRIPTS / "room.lua").read_text(), parts)
    assert "XADD" not in room and len(room) < len(parts) / 10
