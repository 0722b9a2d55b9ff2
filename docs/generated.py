"""Writes the pages of this directory that are made from the code: ``make docs``.

``tests/source/test_generated_documents.py`` holds each of them to what the code says.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import textwrap
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from docs import json_schema, pictures, recipes, typed_keys
from miles_async.config.schema import Elastic, ElasticLearner, EvalDataset, Resources, RunConfig
from miles_async.config.words import allowed, toml
from miles_async.monitor.metrics.table import TABLE

METRICS = """# Metrics

Every line of `metrics.jsonl` has an actor, a step (the learner's version), a time, and values by name. TensorBoard shows the
same, with `train/` or the actor's name before a name that has no group. `{word}` stands for a name of the run's own. *Miles* is
the name of the same number there. What is yours (`learner.log_function`, `eval.eval_function`, a policy loss, a correction, a
learner backend) reports beside these, under the names that it gives.

With `monitor.metrics_port` Prometheus finds the last value of each at `http://127.0.0.1:PORT/metrics` while a launch lives,
as `miles_async_` and the name, with `_` for what it does not take; `{word}` is a label, and `actor` another one. Beside
them are what no actor reports: `miles_async_step`, `num_steps`, `starts`, `groups` by `state`, `groups_dropped` by
`reason`, `engine_version`, `actor_waits_seconds`, `actor_silent_seconds` and `events_total` by `kind`.
`examples/grafana.json` is a dashboard of these. With `track.wandb` the same goes to a run of Weights & Biases, under
TensorBoard's names: offline, into `wandb/` of the run directory, unless `track.wandb_mode` says otherwise. With `track.mlflow`
it goes to a run of MLflow: to the server at `MLFLOW_TRACKING_URI`, or into files in `mlruns/` of the run directory, for
`MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri runs/NAME/mlruns`. Behind the first slash of a name there are dots.

This page is made from `miles_async/monitor/metrics/` by `make docs`.
"""


def metrics() -> str:
    """Every metric, by who reports it."""
    parts = [METRICS]
    for title, _, found in TABLE:
        rows = [f"| `{m.name}` | {m.unit} | {m.says} | {f'`{m.miles}`' if m.miles else ''} |" for m in found]
        parts.append(
            "\n".join([f"## {title}\n", "| name | unit | what it is | Miles |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


CONFIGURATION = """# Configuration

Every key of `run.toml`: a table for each section, `key = value` under it. `"none"` unsets a key that may be unset (`None:` says
what that means). Names follow Miles' flags where the concept is the same. `miles-async launch run.toml --set section.key=value`
changes a key for a launch; `--dry-run` prints what a file comes to. [configuration.schema.json](configuration.schema.json) says
the same to an editor: with Taplo (VS Code: Even Better TOML) a first line `#:schema PATH/TO/configuration.schema.json` makes it
complete keys, show what each is, and mark what is none.

This page is made from `miles_async/config/schema/` by `make docs`.
"""


def configuration() -> str:
    """Every key, by section."""
    parts = [CONFIGURATION]
    for section in msgspec.structs.fields(RunConfig):
        parts.append(_section(section.name, section.type))
        if section.name == "eval":
            parts.append(_section("eval.datasets.NAME", EvalDataset))
        if section.name == "placement":
            parts.append(_section("placement.ROLE", Resources))
            parts.append(_section("placement.elastic", Elastic))
            parts.append(_section("placement.elastic_learner", ElasticLearner))
    return "\n".join(parts)


def _section(name: str, kind: Any) -> str:
    about = inspect.cleandoc(kind.__doc__ or "") + "\n\n" if "__doc__" in vars(kind) and kind.__doc__ else ""
    said = comments(kind)
    rows = [
        f"| `{key.name}` | {_cell(allowed(key.type))} | {_cell(_default(key))} | {_cell(said.get(key.name, ''))} |"
        for key in msgspec.structs.fields(kind)
    ]
    head = "| key | takes | default | what it is |\n|---|---|---|---|\n"
    return f"## [{name}]\n\n{about}{head}" + "\n".join(rows) + "\n"


def _default(key: msgspec.structs.FieldInfo) -> str:
    if key.required:
        return "required"
    value = key.default_factory() if key.default is msgspec.NODEFAULT else key.default
    if isinstance(value, msgspec.Struct):
        return "its own"
    return "unset" if value is None else f"`{toml(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


def comments(kind: type) -> dict[str, str]:
    """What the comment beside each key of a section says, or else the comment above it."""
    source = textwrap.dedent(inspect.getsource(kind))
    found = {
        token.start[0]: token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines, said = source.splitlines(), dict[str, str]()
    (section,) = ast.parse(source).body
    assert isinstance(section, ast.ClassDef)
    for key in section.body:
        if not isinstance(key, ast.AnnAssign) or not isinstance(key.target, ast.Name):
            continue
        if beside := found.get(key.end_lineno or key.lineno):
            said[key.target.id] = beside.string.lstrip("# ")
            continue
        first = key.lineno
        while lines[first - 2].strip().startswith("#"):
            first -= 1
        above = [found[number].string.lstrip("# ") for number in range(first, key.lineno)]
        if above:
            said[key.target.id] = " ".join(above)
    return said


def configuration_schema() -> str:
    """The same for editors."""
    return json.dumps(json_schema.schema(comments), indent=1) + "\n"


def overrides() -> str:
    """And for Python's editors."""
    return typed_keys.module(comments)


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "configuration.schema.json": configuration_schema,
    "metrics.md": metrics,
    "../miles_async/config/overrides.py": overrides,
    **pictures.PAGES,
    **{f"../examples/cluster/{name}": page for name, page in recipes.PAGES.items()},
}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page())
