"""Which weight versions a request accepts, as its headers say, and whether an answer keeps to them.

    x-min-weight-version: 7     an engine that serves version 7 or a later one
    x-weight-version: 7         version 7 for every token of the answer

Promises: a header that says neither is refused with one line; :data:`ANY` costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

MIN_VERSION_HEADER = b"x-min-weight-version"
VERSION_HEADER = b"x-weight-version"
MAX_DIGITS = 15


class DemandError(ValueError):
    """A header that demands a version cannot be understood."""


@dataclass(frozen=True, slots=True)
class Demand:
    """``least``: the oldest version that is accepted. ``exact``: the only one; None: any."""

    least: int = -1
    exact: int | None = None

    def __str__(self) -> str:
        if self.exact is not None:
            return f"weight version {self.exact}"
        return f"weight version {self.least} or a later one" if self.least >= 0 else "any weight version"

    def met_by(self, version: int) -> bool:
        """Whether an engine that serves ``version`` will do."""
        return version >= self.least and (self.exact is None or version == self.exact)

    def broken_by(self, answer: bytes) -> str | None:
        """The first version in an answer of ``/generate`` that is not accepted; None: all are, or it names none.

        It names them in ``meta_info.weight_version`` (that of its end) and ``meta_info.weight_versions`` (spans of tokens).
        """
        try:
            answers = _decoder.decode(answer)
        except (msgspec.DecodeError, RecursionError):
            return None
        for one in answers if isinstance(answers, list) else [answers]:
            named = [span.version for span in one.meta_info.weight_versions or ()] or [one.meta_info.weight_version]
            for version in named:
                if version is not None and not (_is_number(version.encode()) and self.met_by(int(version))):
                    return version
        return None


ANY = Demand()


def read_demand(least: bytes | None, exact: bytes | None) -> Demand:
    """The demand of the two headers' values, None where there is no such header. Raises DemandError."""
    for name, value in ((MIN_VERSION_HEADER, least), (VERSION_HEADER, exact)):
        if value is not None and not _is_number(value):
            shown = value[:50].decode("latin-1")
            raise DemandError(f"{name.decode()} = {shown!a}: expected a weight version such as 7, once")
    demand = Demand(-1 if least is None else int(least), None if exact is None else int(exact))
    if demand.exact is not None and demand.exact < demand.least:
        raise DemandError(f"x-weight-version = {demand.exact} is below x-min-weight-version = {demand.least}")
    return demand


def _is_number(value: bytes) -> bool:
    return value.isdigit() and len(value) <= MAX_DIGITS


class _Span(msgspec.Struct):
    version: str


class _Meta(msgspec.Struct):
    weight_version: str | None = None
    weight_versions: list[_Span] | None = None


class _Answer(msgspec.Struct):
    meta_info: _Meta = msgspec.field(default_factory=_Meta)


_decoder = msgspec.json.Decoder(_Answer | list[_Answer])
