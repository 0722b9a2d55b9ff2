"""The command line: ``miles-async launch | replay | status | inspect | compare | scale | ...``; ``--help`` lists all.

Promises: whatever the user got wrong is one line on standard error and exit code 2; with ``--json`` standard output
holds one JSON document and nothing else; importing this file costs no torch. Exit codes: ``errors.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from miles_async.cli import models, research, running, simulate, watching, web
from miles_async.cli.errors import FAILED, INTERRUPTED, OK, clear_errors, say
from miles_async.cli.options import AsJson, Overrides

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


@app.command()
def launch(
    config_file: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="The run's configuration.")],
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run lives; one that has a run goes on with it. [runs/NAME-TIME]")
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN[@STEP]", help="Begin with the weights of that run's checkpoint."),
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
    default = running.default_run_dir(config_file)
    if submit is not None:
        with clear_errors():
            from miles_async.cli.recipes import carry_out, prepare
            from miles_async.config.schema import ConfigError

            if from_run is not None:
                raise ConfigError(
                    "--from: not with a recipe: give model.hf_checkpoint what `miles-async convert` makes"
                )
            job = prepare(config_file, overrides or [], run_dir, default, wanted, submit)
            say(*carry_out(job, submit, wanted, dry_run), as_json)
        return
    directory = (run_dir or default).absolute()  # it means the same in every process
    if not dry_run and config_file.is_file():
        _warm_up(config_file, overrides or [])
    with clear_errors(directory):
        from miles_async.cli import forking, kept
        from miles_async.cli.launch_check import check_topology
        from miles_async.cli.load import load
        from miles_async.cli.parity import check_parity
        from miles_async.resume import fork
        from miles_async.runs import kinds

        origin = fork.origin(directory, from_run)
        config = load(config_file, [*(overrides or []), *forking.overrides(origin)])
        kinds.refuse_another(directory, kinds.kind_of_config(config))
        check_topology(config, load=dry_run)
        check_parity(config)
        config = forking.with_weights(config, origin, directory, dry_run=dry_run)
        if dry_run:
            from miles_async.cli.dry_run import report

            say(*report(config, directory), as_json)
            return
        if kept.is_asked_for(config):
            raise typer.Exit(kept.follow(config, config_file, overrides or [], directory, as_json=as_json))
        code = running.run_to_its_end(config, directory, as_json)
        if code == INTERRUPTED:
            from miles_async.cli.again import command

            print(f"miles-async: to go on: {command(config_file, overrides or [], directory)}", file=sys.stderr)
    raise typer.Exit(code)


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


def _warm_up(config_file: Path, overrides: list[str]) -> None:
    """Begin to import what actors need: of all that a launch does it takes longest. It ends with this process at the latest."""
    from miles_async.runs import placements

    kind = placements.KINDS.get(placements.kind_in(config_file, overrides))
    if kind is not None and (warm_up := placements.PLACEMENTS[kind].warm_up):
        placements.load(warm_up)()


for commands in (watching, web, research, simulate, models):
    commands.add_to(app)

if __name__ == "__main__":
    main()
