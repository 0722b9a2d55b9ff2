"""``miles-async web``: runs as pages in a browser, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from miles_async.cli.errors import clear_errors


def add_to(app: typer.Typer) -> None:
    """The command."""

    @app.command()
    def web(
        place: Annotated[Path, typer.Argument(metavar="RUNS_DIR|RUN", help="A directory of runs, or a run's.")] = Path(
            "runs"
        ),
        host: Annotated[str, typer.Option(help="Where to listen; beyond this machine it takes a key.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8686,
        key: Annotated[
            str | None,
            typer.Option(metavar="env:NAME", help="What a browser has to bring: env:NAME, or the key itself."),
        ] = None,
    ) -> None:
        """Show runs in a browser: live curves, who waits for whom, samples, a timeline, runs beside each other."""
        with clear_errors():
            from miles_async.web.serve import serve

            serve(place, host, port, key, lambda url: print(f"{place} at {url} (Ctrl-C ends it)", flush=True))
