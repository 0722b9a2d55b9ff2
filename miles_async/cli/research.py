"""The commands of research: ``miles-async replay | compare | sweep``.

Promises: as the other commands (``app.py``): one line for what is wrong, one JSON document with ``--json``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from miles_async.cli import running
from miles_async.cli.errors import FAILED, clear_errors, say
from miles_async.cli.options import AsJson, Overrides


def add_to(app: typer.Typer) -> None:
    """Register the commands."""

    @app.command()
    def replay(
        run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run with a record.")],
        overrides: Overrides = None,
        from_step: Annotated[
            int,
            typer.Option(
                "--from", metavar="STEP", min=0, help="Begin behind this step, with the run's checkpoint of it."
            ),
        ] = 0,
        run_dir: Annotated[
            Path | None, typer.Option(help="Where the replay lives; one that is there goes on. [runs/replay-RUN-TIME]")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Train again on the batches that a run has recorded, without engines: the same losses, or another algorithm's."""
        directory = (run_dir or running.default_run_dir(Path(f"replay-{run.name}"))).absolute()
        with clear_errors(directory):
            from miles_async.cli import replay as replaying
            from miles_async.cli.launch_check import check_topology
            from miles_async.runs import kinds

            kinds.refuse_another(directory, kinds.REPLAY)
            config = replaying.replayed(run, overrides or [], from_step)
            check_topology(config, load=False)
            for line in replaying.differences(run, config):
                print(f"miles-async: {line}", file=sys.stderr)
            code = running.run_to_its_end(config, directory, as_json)
        raise typer.Exit(code)

    @app.command()
    def compare(
        run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Runs' directories.")],
        picture: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Draw reward and lag, too: a .png, .svg or .pdf file.")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Put runs beside each other: what is configured otherwise, and rewards at equal steps, tokens and time."""
        with clear_errors():
            from miles_async.comparing import compare as comparing

            curves = comparing.read_all(run_dirs)
            if picture is not None:
                from miles_async.comparing.picture import draw

                draw(curves, picture)
            found = comparing.compare(curves)
            say(found, comparing.show(found), as_json)

    @app.command()
    def sweep(
        file: Annotated[Path, typer.Argument(metavar="SWEEP.TOML", help="Which keys take which values.")],
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every cell, list them, start nothing.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Run a grid of configurations, each as a run of its own; the same command goes on with what is not finished."""
        with clear_errors():
            from miles_async.cli import sweep as sweeping

            if dry_run:
                _, cells, _ = sweeping.planned(file)
                names = [cell.name for cell in cells]
                say(names, "\n".join(names), as_json)
                return
            found = sweeping.sweep(file)
            say(found, sweeping.show(found), as_json)
        if found["failed"]:
            raise typer.Exit(FAILED)
