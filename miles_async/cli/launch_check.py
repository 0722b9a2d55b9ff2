"""What a launch checks before anything starts, beyond the configuration's own text: the actors and the prompts.

Promises: what is wrong is one line that names the key; nothing is written that stays.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miles_async.config.schema import RunConfig
    from miles_async.data import Loaded


def check_topology(config: RunConfig, *, load: bool) -> None:
    """Refuse an actor that is not there. Raises ConfigError naming the key and what is wrong with its path.

    ``load``: import the class as well, which takes the seconds that torch takes; else only its module is looked for.
    """
    from miles_async.config.schema import ConfigError

    for role in config.topology.__struct_fields__:
        path = getattr(config.topology, role)
        module = path.rpartition(".")[0]
        try:
            if load:
                resolve(path)
            elif not module or importlib.util.find_spec(module) is None:
                raise ImportError(f"no module {module}" if module else "expected a dotted path, module.Class")
        except ImportError as error:
            raise ConfigError(f'topology.{role} = "{path}": {error}') from None


def read_data(config: RunConfig) -> dict[str, Loaded]:
    """Read the tokenizer and every prompt, as the dealer will: what there is for ``data`` and for each dataset.

    Raises DataError or TokenizerError.
    """
    from miles_async.data import load_counted
    from miles_async.evaluation.datasets import count_datasets
    from miles_async.models import builtin
    from miles_async.text.tokenizer import Tokenizer

    model = config.model.hf_checkpoint
    with tempfile.TemporaryDirectory() as made:
        if builtin.is_builtin(model):
            builtin.make_model(model, Path(made), config.run.seed)
            model = made
        tokenizer = Tokenizer(model)
        found = {"data.prompt_data": load_counted(config, tokenizer)}
        if config.eval.eval_interval is not None:
            found |= count_datasets(config, tokenizer)
        return found


def resolve(path: str) -> Any:
    """What the dotted path ``module.name`` names. Raises ImportError saying which part is missing."""
    module, _, name = path.rpartition(".")
    if not module:
        raise ImportError("expected a dotted path, module.Class")
    loaded = importlib.import_module(module)
    if not hasattr(loaded, name):
        close = difflib.get_close_matches(name, dir(loaded), 1)
        near = f'; did you mean "{close[0]}"?' if close else ""
        raise ImportError(f"module {module} has no {name}{near}")
    return getattr(loaded, name)
