"""What is said of an exception of code that is not ours: its words, where it was raised, and the traceback of that code alone.

Promises: nothing here raises, whatever the exception does when it is asked for its text; what comes out can be written as
UTF-8, and is of bounded length.
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

WORDS_CHARS = 2000
TRACE_CHARS = 4000
MADE_OF = 5  # exceptions, one out of the other

_OURS = Path(__file__).parents[2]
_OUR_PACKAGES = tuple(f"{_OURS / name}/" for name in ("actors", "bus", "miles_async"))
_LIBRARIES = tuple(
    f"{path}/" for key in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(key))
)


def words(error: BaseException) -> str:
    """``ZeroDivisionError: division by zero``, on one line."""
    text = _text(error)
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def one_line(text: str, limit: int = WORDS_CHARS) -> str:
    """``text`` on one line of ``limit`` characters at most, lone surrogates written out."""
    line = printable(text[: 4 * limit]).replace("\n", " ").replace("\r", " ")
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def printable(text: str) -> str:
    """``text`` as UTF-8 takes it: lone surrogates written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def place(error: BaseException) -> str:
    """``my_reward.py:12 in score``: the innermost line that is neither ours nor a library's; empty if there is none."""
    mine = [frame for frame in _frames(error) if _is_users(frame.filename)]
    return f"{Path(mine[-1].filename).name}:{mine[-1].lineno} in {mine[-1].name}" if mine else ""


def trace(error: BaseException) -> str:
    """The traceback, without our own frames before the first one of the user's; empty where there is none of those."""
    frames = _frames(error)
    mine = [number for number, frame in enumerate(frames) if _is_users(frame.filename)]
    if not mine:
        return ""
    text = printable("".join([*traceback.format_list(frames[mine[0] :]), words(error)]))
    # its end says most
    return text if len(text) <= TRACE_CHARS else f"...\n{text[-TRACE_CHARS:]}"


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Outermost first; those of the exceptions it was made of, where its own are none of the user's."""
    frames: list[traceback.FrameSummary] = []
    one: BaseException | None = error
    try:
        for _ in range(MADE_OF):
            if one is None:
                break
            frames = list(traceback.extract_tb(one.__traceback__))
            if any(_is_users(frame.filename) for frame in frames):
                break
            one = one.__cause__ or one.__context__
    except Exception:  # of a class that is none of ours, or a file that cannot be read
        return []
    return frames


def _is_users(filename: str) -> bool:
    return not filename.startswith((*_OUR_PACKAGES, *_LIBRARIES, "<frozen"))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as another:  # its own text fails: that is no end of ours
        return f"(its text cannot be had: {type(another).__name__})"
