"""The rows of prompt files, each with its place for error messages.

Promises: every row that is asked for is given, or refused with its file and line (Parquet: row), both counted from 1; rows
outside a slice are not looked at; a slice that selects nothing is refused. Files are read as a stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from miles_async.config.schema import ConfigError, Data
from miles_async.data.prompt import DataError
from miles_async.models import builtin
from miles_async.text.unicode import is_json_of_half_a_letter

PARQUET = ".parquet"  # the end of a Parquet file's name; every other file is JSONL

Row = dict[str, Any]

_SLICE = re.compile(r"(?P<path>.+)@\[(?P<start>-?\d{1,18})?:(?P<stop>-?\d{1,18})?\]")


def sources(data: Data) -> tuple[str, ...]:
    """What ``data.prompt_data`` names: one source or several."""
    return (data.prompt_data,) if isinstance(data.prompt_data, str) else tuple(data.prompt_data)


def partition_slice(source: str) -> tuple[str, str]:
    """``path`` and ``@[a:b]``, right or wrong; the second is empty where there is no slice."""
    path, mark, part = source.rpartition("@[")
    return (path, mark + part) if mark else (source, "")


def split_slice(source: str, key: str = "data.prompt_data") -> tuple[str, slice]:
    """Path and slice of ``path@[a:b]``, the value of ``key``; it selects what it does in Python.

    Raises ConfigError: it is no such slice, or one that is empty whatever the file holds.
    """
    if "@[" not in source:
        return source, slice(None)
    found = _SLICE.fullmatch(source)
    if found is None:
        raise ConfigError(
            f'{key} = "{source}": expected path@[a:b]; a and b are whole numbers, negative ones count from the '
            "end, either may be missing"
        )
    start, stop = (None if found[name] is None else int(found[name]) for name in ("start", "stop"))
    first = start or 0
    if stop is not None and (first < 0) == (stop < 0) and first >= stop:
        raise ConfigError(f'{key} = "{source}": this slice selects no row of any file')
    return found["path"], slice(start, stop)


def rows(source: str) -> Iterator[tuple[str, Row]]:
    """Each row of ``source`` with its place, ``file:line``. Raises DataError: no file, a malformed row, no row at all."""
    path, part = split_slice(source)
    if builtin.is_builtin(path):
        found = _builtin_rows(path, part)
    elif path.endswith(PARQUET):
        found = _parquet_rows(path, part)
    else:
        found = _json_rows(path, part)
    empty = True
    try:
        for row in found:
            empty = False
            yield row
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or one_line(error)}") from None
    if empty:
        raise DataError(f"{source}: " + ("there is no prompt" if part == slice(None) else "the slice selects no row"))


def kind(value: Any) -> str:
    """What a row's value is, in the words of JSON."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def _builtin_rows(name: str, part: slice) -> Iterator[tuple[str, Row]]:
    if name not in builtin.PROMPTS:
        raise DataError(f"{name}: there is no such built-in prompt set; one of {', '.join(builtin.PROMPTS)}")
    for number, row in list(enumerate(builtin.prompt_rows(name), 1))[part]:
        yield f"{name}:{number}", row


def _json_rows(path: str, part: slice) -> Iterator[tuple[str, Row]]:
    start, stop = part.start or 0, part.stop
    if start < 0 or (stop or 0) < 0:  # only then the file is read twice
        with Path(path).open("rb") as file:
            start, stop, _ = part.indices(sum(1 for _ in _lines(file)))
    with Path(path).open("rb") as file:
        _refuse_array(path, file)
        for number, line in islice(_lines(file), start, stop):
            place = f"{path}:{number}"
            yield place, _json_row(place, line)


def _refuse_array(path: str, file: BinaryIO) -> None:
    """Raises DataError: the file is one JSON value over many lines, not a value on each; else it is at its beginning again."""
    first = next((line.strip() for _, line in _lines(file)), b"")
    file.seek(0)
    if not first.startswith(b"[") and first != b"{":
        return
    try:
        value = msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if value is not None and not (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
        return  # a line like any other
    if first == b"{":
        raise DataError(f"{path}: it holds one JSON object over several lines; expected one on each line (JSON Lines)")
    raise DataError(
        f"{path}: it holds one JSON array; expected an object on each line (JSON Lines), as jq -c '.[]' {Path(path).name} "
        "writes them"
    )


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    return ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _json_row(place: str, line: bytes) -> Row:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if is_json_of_half_a_letter(line):
            raise DataError(f"{place}: it holds half a surrogate pair, which is no text") from None
        raise DataError(f"{place}: not a JSON line: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected a JSON object, got {kind(row)}")
    return row


def _parquet_rows(path: str, part: slice) -> Iterator[tuple[str, Row]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: a Parquet file needs the package pyarrow") from None
    try:
        with Path(path).open("rb") as file:
            table = parquet.ParquetFile(file)
            wanted = range(table.metadata.num_rows)[part]
            first = 0  # row of the batch
            for batch in table.iter_batches():
                here = range(max(wanted.start, first), min(wanted.stop, first + batch.num_rows))
                if here:
                    yield from _batch_rows(path, here.start, batch.slice(here.start - first, len(here)))
                first += batch.num_rows
    except DataError:
        raise
    except (ArrowException, ValueError) as error:
        raise DataError(f"{path}: {one_line(error)}") from None


def _batch_rows(path: str, first: int, batch: Any) -> Iterator[tuple[str, Row]]:
    """The rows of an Arrow batch that begins with row ``first`` (from 0)."""
    try:
        found = batch.to_pylist()
    except ValueError:  # text that is not UTF-8, a time that Python has no type for: again, to see in which row
        found = (row for number in range(batch.num_rows) for row in batch.slice(number, 1).to_pylist())
    number = first
    try:
        for number, row in enumerate(found, first + 1):
            yield f"{path}:row {number}", {key: plain(value) for key, value in row.items()}
    except ValueError as error:
        raise DataError(f"{path}:row {number + 1}: {one_line(error)}") from None


def plain(value: Any) -> Any:
    """``value`` as JSON would hold it: without the fields that are null (in Parquet every entry of a column has the fields of
    all the others), maps as objects, arrays as lists."""
    if hasattr(value, "tolist"):  # numpy's and its kin's
        value = value.tolist()
    if isinstance(value, list) and value and all(type(item) is tuple and len(item) == 2 for item in value):
        value = dict(value)  # a map, as pyarrow gives one
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list) else value


def one_line(error: Exception) -> str:
    """The message of an exception of somebody else's."""
    return " ".join(str(error).split())
