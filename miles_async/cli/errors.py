"""What a command says at its end: its result, or one line on standard error and the exit code that goes with it.

====  =====================================================
0     it worked
1     a run failed, or a check of ``doctor``, or a run did not answer: the cause is the last line on standard error
2     bad input: the command line, the configuration, a file
3     no Redis can be found, started or reached
130   interrupted; the run has a checkpoint, the same command with ``--run-dir`` goes on from it
====  =====================================================
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

OK, FAILED, BAD_INPUT, NO_REDIS, INTERRUPTED = 0, 1, 2, 3, 130


@contextlib.contextmanager
def clear_errors(run_dir: Path | None = None) -> Iterator[None]:
    """Turn what goes wrong inside into one line and its exit code; a surprise leaves its traceback in ``run_dir``."""
    from bus.errors import NoRedisError

    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        _fail(INTERRUPTED, "interrupted")
    except NoRedisError as error:
        _fail(NO_REDIS, str(error))
    except Exception as error:
        if _is_bad_input(error):
            _fail(BAD_INPUT, str(error))
        _fail(FAILED, _surprise(error, run_dir))


def _is_bad_input(error: Exception) -> bool:
    """Our own ValueErrors (ConfigError, DataError) speak of what the user gave; so does a path that is of no use."""
    unusable = isinstance(error, PermissionError | NotADirectoryError | FileExistsError)
    return unusable or (_is_ours(error) and isinstance(error, ValueError))


def _is_ours(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("bus", "miles_async", "actors")


def _surprise(error: Exception, run_dir: Path | None) -> str:
    if _is_ours(error) or isinstance(error, TimeoutError):
        return str(error)
    cause = f"{type(error).__name__}: {error}".replace("\n", " ")
    if run_dir is not None and run_dir.is_dir():
        log = run_dir / "launch-error.log"
        try:
            log.write_text(traceback.format_exc())
        except OSError as unwritten:
            return f"{cause} ({log} cannot be written: {unwritten.strerror})"
        return f"{cause} (see {log})"
    traceback.print_exc()
    return cause


def _fail(code: int, message: str) -> None:
    print(f"miles-async: {message}", file=sys.stderr)
    raise typer.Exit(code) from None


def say(document: Any, text: str, as_json: bool) -> None:
    """Print ``text``, or the document as JSON. Exits with 1 where that could not be written."""
    print(json.dumps(document) if as_json else text)
    sys.stdout.flush()
    if as_json and (lost := getattr(sys.stdout, "lost", None)) is not None:
        _fail(FAILED, f"the JSON could not be written: {lost}")
