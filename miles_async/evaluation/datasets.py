"""The datasets of an evaluation, loaded."""

from __future__ import annotations

from dataclasses import dataclass

from miles_async.config.schema import RunConfig
from miles_async.data import DataError, Loaded, Prompt, load_counted
from miles_async.evaluation.settings import dataset_configs
from miles_async.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Dataset:
    """A dataset as an evaluation function sees it. ``config``: the run's, with the dataset's data, sampling and reward."""

    name: str
    prompts: tuple[Prompt, ...]
    config: RunConfig

    @property
    def n_samples(self) -> int:
        """How many samples there are of each prompt."""
        return self.config.rollout.n_samples_per_prompt


def load_datasets(config: RunConfig, tokenizer: Tokenizer) -> list[Dataset]:
    """All of them. Raises DataError naming the dataset, the file and, where there is one, the line."""
    configs = dataset_configs(config)
    return [Dataset(name, tuple(_counted(name, its, tokenizer).prompts), its) for name, its in configs.items()]


def count_datasets(config: RunConfig, tokenizer: Tokenizer) -> dict[str, Loaded]:
    """What was read of each, by the name of its table. Raises like :func:`load_datasets`."""
    return {f"eval.datasets.{name}": _counted(name, its, tokenizer) for name, its in dataset_configs(config).items()}


def _counted(name: str, config: RunConfig, tokenizer: Tokenizer) -> Loaded:
    try:
        return load_counted(config, tokenizer)
    except DataError as error:
        raise DataError(f"eval.datasets.{name}: {error}") from None
