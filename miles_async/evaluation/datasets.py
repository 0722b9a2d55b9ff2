"""The datasets of an evaluation, loaded."""

from __future__ import annotations

from dataclasses import dataclass

from miles_async.config import RunConfig
from miles_async.data import DataError, Prompt, load_prompts
from miles_async.evaluation.settings import dataset_configs
from miles_async.tokenizer import Tokenizer


@dataclass(frozen=True)
class Dataset:
    """A dataset as an evaluation function sees it. ``config``: the run's, with the dataset's data, sampling and reward."""

    name: str
    prompts: tuple[Prompt, ...]
    config: RunConfig

    @property
    def n_samples(self) -> int:
        """Of each prompt."""
        return self.config.rollout.n_samples_per_prompt


def load_datasets(config: RunConfig, tokenizer: Tokenizer) -> list[Dataset]:
    """All of them. Raises DataError naming the dataset, the file and, where there is one, the line."""
    found = []
    for name, its_config in dataset_configs(config).items():
        try:
            found.append(Dataset(name, tuple(load_prompts(its_config, tokenizer)), its_config))
        except DataError as error:
            raise DataError(f"eval.datasets.{name}: {error}") from None
    return found
