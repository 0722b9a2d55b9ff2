"""The commands that look at runs and change nothing: ``miles-async runs | status | top | logs | inspect``.

Promises: as the other commands (``app.py``): one line for what is wrong, one JSON document with ``--json``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from miles_async.cli.errors import clear_errors, say
from miles_async.cli.options import AsJson


def add_to(app: typer.Typer) -> None:
    """Register the commands."""

    @app.command()
    def runs(
        root: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where the runs are. [runs]")] = Path("runs"),
        as_json: AsJson = False,
    ) -> None:
        """List the runs of a directory: state, step, reward, lag, throughput, age."""
        with clear_errors():
            from miles_async.monitor import runs_table

            found = runs_table.runs(root, time.time())
            say(found, runs_table.show(found, root), as_json)

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
                say(error.found, status_of.show(error.found, time.time()), as_json)
                raise
            say(found, status_of.show(found, time.time()), as_json)

    @app.command()
    def inspect(
        run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")],
        subject: Annotated[str, typer.Argument(metavar="group|step|actor|drops|sample", help="What to look at.")],
        name: Annotated[
            str,
            typer.Argument(
                metavar="[ID|K|NAME]", help="Which group, step or actor; of a sample its group's ID, or ID/INDEX."
            ),
        ] = "",
        as_json: AsJson = False,
    ) -> None:
        """Say what became of a group, a step or an actor, what was dropped and why, and what the model wrote; of any run."""
        with clear_errors():
            from miles_async.monitor import inspect as look
            from miles_async.monitor.inspect_show import show
            from miles_async.recording import samples

            found = look.inspect(run_dir, subject, name, {"sample": samples.inspect_sample})
            say(found, samples.show(found) if subject == "sample" else show(found), as_json)

    @app.command()
    def top(run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")]) -> None:
        """Show the live view of a run until it ends, then its summary; Ctrl-C leaves the run alone."""
        with clear_errors():
            from miles_async.monitor import status as status_of
            from miles_async.monitor import top as live

            try:
                live.top(run_dir, sys.stdout)
            except KeyboardInterrupt:
                return
            found = status_of.status(run_dir)
            say(found, status_of.show(found, time.time()), as_json=False)

    @app.command()
    def logs(
        run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")],
        actor: Annotated[
            str, typer.Argument(metavar="[ACTOR]", help="Whose, as engine-0; a role, as engine, is all of them. [all]")
        ] = "",
        follow: Annotated[
            bool, typer.Option("-f", "--follow", help="Go on with what comes, until the run ends.")
        ] = False,
    ) -> None:
        """Print what the processes of a run have written to their logs."""
        with clear_errors():
            from miles_async.monitor.run_logs import RunLogs

            found = RunLogs(run_dir, actor)
            try:
                for line in found.lines(follow=follow):
                    print(line, flush=follow)
            except KeyboardInterrupt:
                return
