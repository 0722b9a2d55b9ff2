"""The commands that work on the models of runs, without a run: ``miles-async convert | eval``.

Promises: as the other commands (``cli.py``): one line for what is wrong, one JSON document with ``--json``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from miles_async.cli.errors import clear_errors, say
from miles_async.cli.options import AsJson, Overrides


def add_to(app: typer.Typer) -> None:
    """Register the commands."""

    @app.command()
    def convert(
        source: Annotated[
            Path,
            typer.Argument(
                metavar="RUN|CHECKPOINT|SCRIPT",
                help="A run's directory, or a checkpoint of it; or a launch script of Miles or slime.",
            ),
        ],
        out: Annotated[
            Path | None,
            typer.Argument(metavar="OUT", help="The Hugging Face directory that is made; of a script the TOML file."),
        ] = None,
        output: Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT", help="The same.")] = None,
        adapters: Annotated[
            bool, typer.Option("--adapters", help="Only what learner.lora_rank trained, in PEFT's format.")
        ] = False,
        model: Annotated[
            Path | None,
            typer.Option(
                metavar="DIR",
                help="CHECKPOINT is Megatron's own (torch_dist), of a model like this Hugging Face directory's.",
            ),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Make a checkpoint of a run a Hugging Face directory, or another program's launch script a run.toml."""
        with clear_errors():
            from miles_async.config.schema import ConfigError

            if (out is None) == (output is None):
                raise ConfigError("convert: expected one OUT, what is made")
            out = out or output
            assert out is not None
            if source.is_file():
                from miles_async.cli import from_miles

                say(*from_miles.convert(source, out), as_json)
                return
            from miles_async.train import convert as conversion

            found = conversion.find(source, model)
            conversion.convert(found, out, adapters=adapters)
            document = {
                "checkpoint": str(found.path),
                "version": found.version,
                "verified": found.verified,
                "directory": str(out),
            }
            doubt = "" if found.verified else " (it has no checksums: not verified)"
            say(document, f"{out}: version {found.version}, from {found.path}{doubt}", as_json)

    @app.command("eval")
    def evaluate(
        config_file: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="Whose [eval] says what is measured.")],
        model: Annotated[
            Path, typer.Argument(metavar="MODEL", help="A Hugging Face directory, a run, a checkpoint of one.")
        ],
        overrides: Overrides = None,
        samples: Annotated[Path | None, typer.Option(help="A directory for every prompt, response and reward.")] = None,
        as_json: AsJson = False,
    ) -> None:
        """Measure a model on the datasets of [eval], without a run."""
        with clear_errors():
            found = _evaluate(config_file, overrides or [], model, samples)
            lines = [f"{name:40} {value:.6g}" for name, value in found["metrics"].items()]
            say(found, "\n".join([f"{found['model']}, version {found['version']}", *lines]), as_json)


def _evaluate(config_file: Path, overrides: list[str], model: Path, samples: Path | None) -> dict[str, Any]:
    import asyncio

    from miles_async.cli.load import check_all, load
    from miles_async.engines.kinds.table import kind_of
    from miles_async.evaluation.record import EvalRecord
    from miles_async.evaluation.standalone import check_eval, evaluate
    from miles_async.models.support import check_models
    from miles_async.train.backend import computes

    config = load(config_file, overrides, check=False)
    check_eval(config)
    if config.eval.eval_interval is None:  # when a run would evaluate is nothing to us; what one would not look at is
        section = msgspec.structs.replace(config.eval, eval_interval=config.weights.update_interval)
        config = msgspec.structs.replace(config, eval=section)
    check_all(config)
    with tempfile.TemporaryDirectory(prefix="miles-eval-") as place:
        version, directory = _as_directory(model, Path(place))
        check_models(
            msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, hf_checkpoint=directory)),
            kind_of(config.engine).COMPUTES,
            computes(config),
        )
        record = None if samples is None else EvalRecord(samples)  # before the measuring, which may take hours
        results = asyncio.run(evaluate(config, directory, version))
    if record is not None:
        record.add_samples(version, results)
    metrics = {name: value for result in results.values() for name, value in result.metrics.items()}
    return {"model": str(model), "version": version, "metrics": metrics}


def _as_directory(model: Path, place: Path) -> tuple[int, str]:
    """The version and the Hugging Face directory that ``model`` means; a checkpoint is made one below ``place``."""
    if (model / "config.json").is_file():
        return 0, str(model.absolute())
    from miles_async.train import convert as conversion

    found = conversion.find(model)
    conversion.convert(found, place / "model")
    return found.version, str(place / "model")
