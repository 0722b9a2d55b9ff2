"""What the fields of messages may hold: numbers, names, URLs, texts for people.

Promises: what no actor would write is refused where a message is decoded; a number that is accepted fits into ``<i4``.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MAX_NUMBER = 2**31 - 1  # of a version, a step, an incarnation: they travel as <i4, too
Number = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
Version = Annotated[int, Meta(ge=-1, le=MAX_NUMBER)]  # -1: weights that are nobody's version
Seconds = Annotated[float, Meta(ge=0, le=1e11)]  # since the epoch; NaN is refused, too
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}\Z")]  # of an actor or an engine
Url = Annotated[str, Meta(pattern=r"^http://[A-Za-z0-9_.:\[\]-]{1,255}(/[A-Za-z0-9_.~/-]{0,255})?\Z")]
# where an actor runs: a kind, and which
Place = Annotated[str, Meta(pattern=r"^([a-z]{1,20} [A-Za-z0-9_.:@/-]{1,200})?\Z")]
Node = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{0,100}\Z")]  # the machine of an actor
Text = Annotated[str, Meta(max_length=10_000)]  # for people to read

MAX_MEMBERS = 1024  # engines, or rollout workers, of a run
Members = Annotated[int, Meta(ge=1, le=MAX_MEMBERS)]
