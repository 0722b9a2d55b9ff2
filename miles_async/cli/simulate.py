"""``miles-async simulate``: a run by events, without a model; its settings from a file, or from a run's record.

Promises: as the other commands (``cli.py``): one line for what is wrong, one JSON document with ``--json``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from miles_async.cli.errors import clear_errors, say


def add_to(app: typer.Typer) -> None:
    """Register the command."""

    @app.command()
    def simulate(
        config_file: Annotated[
            Path | None, typer.Argument(metavar="[SIM.TOML]", help="The simulation's settings; or --from RUN.")
        ] = None,
        run: Annotated[
            Path | None, typer.Option("--from", metavar="RUN", help="Settings that fit this run's record.")
        ] = None,
        overrides: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; can be repeated."),
        ] = None,
        run_dir: Annotated[
            Path | None,
            typer.Option(
                help="Where settings, timeline and figures are left, for `compare`. [none; with --from runs/sim-RUN-TIME]"
            ),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    ) -> None:
        """Simulate a run by events: what a staleness policy, a fleet and a learner come to, without a model."""
        with clear_errors():
            from miles_async.simulation.show import show

            if run is not None:
                run_dir = run_dir or Path("runs") / f"sim-{run.absolute().name}-{time.strftime('%Y%m%d-%H%M%S')}"
            found = _found(config_file, run, overrides or [], run_dir)
            files = "" if run_dir is None else f"\nfiles    {run_dir}"
            say(found, show(found) + files, as_json)


def _found(config_file: Path | None, run: Path | None, overrides: list[str], run_dir: Path | None) -> dict[str, Any]:
    """The figures. Raises ConfigError, RecordError, StuckError."""
    from miles_async.config.schema import ConfigError
    from miles_async.config.toml import text_of
    from miles_async.runs import kinds
    from miles_async.simulation import reading
    from miles_async.simulation.directory import simulate_into
    from miles_async.simulation.result import result

    if (config_file is None) == (run is None):
        raise ConfigError("simulate SIM.TOML, or simulate --from RUN: one of the two")
    about = None
    if run is not None:
        from miles_async.simulation.calibrate import calibrate

        assert run_dir is not None
        kinds.refuse_another(run_dir, kinds.SIMULATION)
        config, about = calibrate(run, overrides)
    else:
        assert config_file is not None
        config = reading.parse(text_of(config_file), overrides, source=str(config_file))
    return result(config) if run_dir is None else simulate_into(config, run_dir, about)
