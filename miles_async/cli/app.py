"""The command line: ``miles-async launch | replay | status | inspect | compare | scale | ...``; ``--help`` lists all.

Promises: whatever the user got wrong is one line on standard error and exit code 2; with ``--json`` standard output
holds one JSON document and nothing else; importing this file costs no torch. Exit codes: ``errors.py``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from miles_async.cli import models as cli_models
from miles_async.cli import simulate as cli_simulate
from miles_async.cli import web as cli_web
from miles_async.cli.errors import FAILED, INTERRUPTED, OK, clear_errors, say

if TYPE_CHECKING:
    from miles_async.config.schema import RunConfig

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
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; can be repeated.")
]


@app.command()
def launch(
    config_file: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="The run's configuration.")],
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run lives; one that has a run goes on with it. [runs/NAME-TIME]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the result, start nothing.")
    ] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit it to Slurm: a job of several machines.")] = False,
    kuberay: Annotated[bool, typer.Option("--kuberay", help="Submit it to Kubernetes as a RayJob of KubeRay.")] = False,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another recipe: raycluster, compose, ray-start.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines of a recipe. [as many as it needs]")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="GPUs of such a machine. [8, if any]")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(min=1, help="CPUs of such a machine. [all it has]")] = None,
    image: Annotated[str | None, typer.Option(help="Container image of a recipe.")] = None,
    template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A Jinja template in the place of a recipe's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train: start the processes of a run, watch them, and stop them in order."""
    from miles_async.cli.recipes import Wanted

    wanted = Wanted(slurm, kuberay, recipe, nodes, gpus_per_node, cpus_per_node, image, template)
    with clear_errors():
        submit = wanted.name()
    default = default_run_dir(config_file)
    if submit is not None:
        with clear_errors():
            from miles_async.cli.recipes import carry_out, prepare

            job = prepare(config_file, overrides or [], run_dir, default, wanted, submit)
            say(*carry_out(job, submit, wanted, dry_run), as_json)
        return
    directory = (run_dir or default).absolute()  # it means the same in every process
    if not dry_run and config_file.is_file():
        _warm_up(config_file, overrides or [])
    with clear_errors(directory):
        from miles_async.cli import kept
        from miles_async.cli.launch_check import check_topology
        from miles_async.cli.load import load
        from miles_async.cli.parity import check_parity

        config = load(config_file, overrides or [])
        check_topology(config, load=dry_run)
        check_parity(config)
        if dry_run:
            from miles_async.cli.dry_run import report

            say(*report(config, directory), as_json)
            return
        if kept.is_asked_for(config):
            raise typer.Exit(kept.follow(config, config_file, overrides or [], directory, as_json=as_json))
        code = _run(config, directory, as_json)
        if code == INTERRUPTED:
            from miles_async.cli.again import command

            print(f"miles-async: to go on: {command(config_file, overrides or [], directory)}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run with a record.")],
    overrides: Overrides = None,
    from_step: Annotated[
        int,
        typer.Option("--from", metavar="STEP", min=0, help="Begin behind this step, with the run's checkpoint of it."),
    ] = 0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the replay lives; one that is there goes on. [runs/replay-RUN-TIME]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train again on the batches that a run has recorded, without engines: the same losses, or another algorithm's."""
    directory = (run_dir or default_run_dir(Path(f"replay-{run.name}"))).absolute()
    with clear_errors(directory):
        from miles_async.cli import replay as replaying
        from miles_async.cli.launch_check import check_topology

        config = replaying.replayed(run, overrides or [], from_step)
        check_topology(config, load=False)
        for line in replaying.differences(run, config):
            print(f"miles-async: {line}", file=sys.stderr)
        code = _run(config, directory, as_json)
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


@app.command()
def scale(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run that is alive.")],
    changes: Annotated[list[str], typer.Argument(metavar="engines=K workers=N", help="How many there are to be.")],
    as_json: AsJson = False,
) -> None:
    """Add or remove engines and rollout workers of a run while it goes on; who is removed finishes its work first."""
    with clear_errors():
        from miles_async.cli import scale as scaling

        found = scaling.scale(run_dir, changes)
        say(found, scaling.show(found), as_json)


@app.command()
def clean(
    run_dirs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN...]", help="Runs' directories. [all]")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove the weights that killed and stopped launches have left in memory; runs that live keep theirs."""
    with clear_errors():
        from miles_async.weights import clean as cleaning

        found = cleaning.clean(run_dirs or [])
        say(found, cleaning.show(found), as_json)


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A file benchmarks/bench_NAME.py of the checkout; none: list them.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Run one benchmark and print its figures as JSON."""
    with clear_errors():
        from miles_async.cli import benchmarks

        if not name:
            names = benchmarks.names()
            say(names, "\n".join(names), as_json)
            return
        result = benchmarks.find(name).run()
        say(result, json.dumps(result, indent=2), as_json)


@app.command()
def doctor(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL", help="A Hugging Face directory: does the learner compute it as transformers does?"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look whether this machine has what a run needs, or whether the learner computes a model as transformers does."""
    with clear_errors():
        import msgspec

        from miles_async.cli import doctor as checks

        findings = checks.examine() if model is None else [checks.check_model(model)]
        say([msgspec.to_builtins(finding) for finding in findings], checks.show(findings), as_json)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(FAILED)


def main() -> None:
    """The program. Ends with one of the exit codes of this file's head, whether or not anybody reads what it says."""
    from miles_async.monitor import outlet

    outlet.install()
    try:
        app()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def default_run_dir(config_file: Path) -> Path:
    """``runs/<name of the file>-<date and time>``."""
    return Path("runs") / f"{config_file.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _warm_up(config_file: Path, overrides: list[str]) -> None:
    """Begin to import what actors need: of all that a launch does it takes longest. It ends with this process at the latest."""
    from miles_async.runs import placements

    kind = placements.KINDS.get(placements.kind_in(config_file, overrides))
    if kind is not None and (warm_up := placements.PLACEMENTS[kind].warm_up):
        placements.load(warm_up)()


def _run(config: RunConfig, directory: Path, as_json: bool) -> int:
    from miles_async.cli.launch_check import resolve
    from miles_async.monitor import Monitor
    from miles_async.monitor.summary import describe
    from miles_async.runs import placements

    monitor = Monitor(stream=sys.stderr if as_json else sys.stdout)
    placement = placements.load(placements.named(config).placement)(config, directory)
    code = int(resolve(SUPERVISOR)(config, directory, monitor, placement).run())
    summary = monitor.summary
    if summary is not None:
        say(summary, f"{describe(summary)}\nfiles    {directory}", as_json)
        for trouble in [*summary["troubles"], *([monitor.note] if monitor.note else [])]:
            print(f"miles-async: {trouble}", file=sys.stderr)
    if code != OK:
        reason = (summary or {}).get("reason") or f"the run ended with code {code}; see {directory}"
        print(f"miles-async: {reason}", file=sys.stderr)
    return code


cli_models.add_to(app)
cli_simulate.add_to(app)
cli_web.add_to(app)

if __name__ == "__main__":
    main()
