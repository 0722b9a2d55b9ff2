"""The command line: ``miles-async launch | status | inspect | scale | clean | convert | eval | bench | doctor``.

Promises: whatever the user got wrong is one line on standard error and exit code 2; with ``--json`` standard output
holds one JSON document and nothing else; importing this file costs no torch. Exit codes:

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
import difflib
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miles_async import cli_models

if TYPE_CHECKING:
    from miles_async.config import RunConfig

OK, FAILED, BAD_INPUT, NO_REDIS, INTERRUPTED = 0, 1, 2, 3, 130

_ROOT = Path(__file__).resolve().parent.parent

SUPERVISOR = "actors.runtime.supervisor.Supervisor"  # by name: nothing of miles_async imports an actor

app = typer.Typer(
    name="miles-async",
    help="Asynchronous reinforcement learning of language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"miles-async {version('miles-async')}")
        raise typer.Exit(OK)


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Which version this is.")
    ] = False,
) -> None:
    """Asynchronous reinforcement learning of language models."""


AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@app.command()
def launch(
    config_file: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="The run's configuration.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; can be repeated.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run lives; one that has a run goes on with it. [runs/NAME-TIME]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the result, start nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train: start the processes of a run, watch them, and stop them in order."""
    directory = (run_dir or default_run_dir(config_file)).absolute()  # it means the same in every process
    with clear_errors(directory):
        from miles_async.config_load import load
        from miles_async.launch_check import check_topology

        config = load(config_file, overrides or [])
        check_topology(config, load=dry_run)
        if dry_run:
            from miles_async.dry_run import report

            _print(*report(config, directory), as_json)
            return
        code = _run(config, directory, as_json)
        if code == INTERRUPTED:
            from miles_async.again import command

            print(f"miles-async: to go on: {command(config_file, overrides or [], directory)}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")], as_json: AsJson = False
) -> None:
    """Say how a run does: who is busy or waits for whom, the ledger, the versions; or its summary, if it has ended."""
    with clear_errors():
        from miles_async.monitor import status as status_of

        try:
            found = status_of.status(run_dir)
        except status_of.SilentBusError as error:
            _print(error.found, status_of.show(error.found, time.time()), as_json)
            raise
        _print(found, status_of.show(found, time.time()), as_json)


@app.command()
def inspect(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")],
    subject: Annotated[str, typer.Argument(metavar="group|step|actor|drops", help="What to look at.")],
    name: Annotated[str, typer.Argument(metavar="[ID|K|NAME]", help="Which group, step or actor.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say what became of a group, a step or an actor, and what was dropped and why; of a run that lives or has ended."""
    with clear_errors():
        from miles_async.monitor import inspect as look
        from miles_async.monitor.inspect_show import show

        found = look.inspect(run_dir, subject, name)
        _print(found, show(found), as_json)


@app.command()
def scale(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run that is alive.")],
    changes: Annotated[list[str], typer.Argument(metavar="engines=K workers=N", help="How many there are to be.")],
    as_json: AsJson = False,
) -> None:
    """Add or remove engines and rollout workers of a run while it goes on; who is removed finishes its work first."""
    with clear_errors():
        from miles_async import scale as scaling

        found = scaling.scale(run_dir, changes)
        _print(found, scaling.show(found), as_json)


@app.command()
def clean(
    run_dirs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN...]", help="Runs' directories. [all]")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove the weights that killed and stopped launches have left in memory; runs that live keep theirs."""
    with clear_errors():
        from miles_async import clean as cleaning

        found = cleaning.clean(run_dirs or [])
        _print(found, cleaning.show(found), as_json)


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A file benchmarks/bench_NAME.py of the checkout; none: list them.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Run one benchmark and print its figures as JSON."""
    with clear_errors():
        if not name:
            names = benchmarks()
            _print(names, "\n".join(names), as_json)
            return
        result = find_benchmark(name).run()
        _print(result, json.dumps(result, indent=2), as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look whether this machine has what a run needs."""
    with clear_errors():
        import msgspec

        from miles_async import doctor as checks

        findings = checks.examine()
        _print([msgspec.to_builtins(finding) for finding in findings], checks.show(findings), as_json)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(FAILED)


def main() -> None:
    """The program. Ends with one of the exit codes of this file's head, whether or not anybody reads what it says."""
    from miles_async import outlet

    outlet.install()
    try:
        app()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def default_run_dir(config_file: Path) -> Path:
    """``runs/<name of the file>-<date and time>``."""
    return Path("runs") / f"{config_file.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def benchmarks() -> list[str]:
    """The names of the checkout's benchmarks. Raises ConfigError: this is none."""
    from miles_async.config import ConfigError

    names = sorted(path.stem.removeprefix("bench_") for path in (_ROOT / "benchmarks").glob("bench_*.py"))
    if not names:
        raise ConfigError(f"no benchmarks beside {_ROOT / 'miles_async'}: they are in the checkout, not in the package")
    return names


def find_benchmark(name: str) -> Any:
    """The module ``benchmarks.bench_<name>``. Raises ConfigError with the nearest name."""
    from miles_async.config import ConfigError

    names = benchmarks()
    if name not in names:
        raise ConfigError(f'no benchmark "{name}"{_nearest(name, names)} (there are: {", ".join(names)})')
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
    return importlib.import_module(f"benchmarks.bench_{name}")


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


def _run(config: RunConfig, directory: Path, as_json: bool) -> int:
    from miles_async.launch_check import resolve
    from miles_async.monitor import Monitor
    from miles_async.monitor.summary import describe

    monitor = Monitor(stream=sys.stderr if as_json else sys.stdout)
    code = int(resolve(SUPERVISOR)(config, directory, monitor).run())
    summary = monitor.summary
    if summary is not None:
        _print(summary, f"{describe(summary)}\nfiles    {directory}", as_json)
        for trouble in [*summary["troubles"], *([monitor.note] if monitor.note else [])]:
            print(f"miles-async: {trouble}", file=sys.stderr)
    if code != OK:
        reason = (summary or {}).get("reason") or f"the run ended with code {code}; see {directory}"
        print(f"miles-async: {reason}", file=sys.stderr)
    return code


def _print(document: Any, text: str, as_json: bool) -> None:
    print(json.dumps(document) if as_json else text)
    sys.stdout.flush()
    if as_json and (lost := getattr(sys.stdout, "lost", None)) is not None:
        _fail(FAILED, f"the JSON could not be written: {lost}")


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f'; did you mean "{near[0]}"?' if near else ""


cli_models.add_to(app, clear_errors, _print)

if __name__ == "__main__":
    main()
