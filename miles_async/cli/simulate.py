"""``miles-async simulate``: a run by events, without a model.

Promises: as the other commands (``cli.py``): one line for what is wrong, one JSON document with ``--json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from miles_async.cli.errors import clear_errors, say


def add_to(app: typer.Typer) -> None:
    """Register the command."""

    @app.command()
    def simulate(
        config_file: Annotated[Path, typer.Argument(metavar="SIM.TOML", help="The simulation's settings.")],
        overrides: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; can be repeated."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    ) -> None:
        """Simulate a run by events: what a staleness policy, a fleet and a learner come to, without a model."""
        with clear_errors():
            from miles_async.config.toml import text_of
            from miles_async.simulation import reading
            from miles_async.simulation.result import result
            from miles_async.simulation.show import show

            config = reading.parse(text_of(config_file), overrides or [], source=str(config_file))
            found = result(config)
            say(found, show(found), as_json)
