"""How the processes of a learner split one model among them, and how many replicas of it that leaves. Pure, without torch.

    learner.num_ranks = tensor_parallel_size * pipeline_parallel_size * context_parallel_size * data-parallel replicas

Promises: a product that does not come out even is refused with the arithmetic; the place of a rank is Megatron's own (tensor
parallelism fastest, then context, data, pipeline: ``parallel_state.initialize_model_parallel``, order "tp-cp-ep-dp-pp").
"""

from __future__ import annotations

from dataclasses import dataclass

from miles_async.config.schema import ConfigError, Learner


@dataclass(frozen=True)
class Layout:
    """The sizes. ``virtual``: parts of the model on each stage of the pipeline, taken in turns. ``expert``, ``expert_tensor``:
    of the experts of a mixture, which are split over the same processes in their own way."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    sequence: bool = False  # what tensor-parallel ranks would all compute (norms) is split along the sequence

    @property
    def model(self) -> int:
        """Processes that hold one replica."""
        return self.tensor * self.pipeline * self.context

    @property
    def splits_model(self) -> bool:
        """Whether some process holds less than the whole model."""
        return self.model * self.expert > 1

    def replicas(self, ranks: int) -> int:
        """The data-parallel size of so many processes."""
        return ranks // self.model

    def replica(self, rank: int, ranks: int) -> int:
        """The data-parallel rank of process ``rank``: which share of a batch it trains on."""
        return rank // (self.tensor * self.context) % self.replicas(ranks)


WHOLE = Layout()  # every process holds a whole model


def layout_of(learner: Learner) -> Layout:
    """The layout that the keys of [learner] say."""
    tensor = learner.tensor_parallel_size
    return Layout(
        tensor=tensor,
        pipeline=learner.pipeline_parallel_size,
        virtual=learner.virtual_pipeline_size,
        context=learner.context_parallel_size,
        expert=learner.expert_parallel_size,
        expert_tensor=learner.expert_tensor_parallel_size or tensor,
        sequence=tensor > 1 if learner.sequence_parallel is None else learner.sequence_parallel,
    )


def replicas(learner: Learner) -> int:
    """How many shares a batch is split into."""
    return layout_of(learner).replicas(learner.num_ranks)


def check(learner: Learner) -> None:
    """Refuse sizes that do not come out even. Raises ConfigError."""
    layout, ranks = layout_of(learner), learner.num_ranks
    if ranks % layout.model:
        raise ConfigError(
            f"learner.num_ranks = {ranks} must be a multiple of learner.tensor_parallel_size * pipeline_parallel_size * "
            f"context_parallel_size = {layout.tensor} * {layout.pipeline} * {layout.context} = {layout.model}"
        )
    if layout.expert_tensor not in (1, layout.tensor):
        raise ConfigError(
            f"learner.expert_tensor_parallel_size = {layout.expert_tensor} must be 1 or learner.tensor_parallel_size = "
            f"{layout.tensor}"
        )
    experts = layout.expert * layout.expert_tensor * layout.pipeline
    if layout.expert > 1 and ranks % experts:
        raise ConfigError(
            f"learner.num_ranks = {ranks} must be a multiple of learner.expert_parallel_size * expert_tensor_parallel_size * "
            f"pipeline_parallel_size = {layout.expert} * {layout.expert_tensor} * {layout.pipeline} = {experts}"
        )
    if layout.virtual > 1 and layout.pipeline == 1:
        raise ConfigError(
            f"learner.virtual_pipeline_size = {layout.virtual} needs learner.pipeline_parallel_size above 1: there is no "
            "pipeline whose stages could take turns"
        )
    if layout.sequence and layout.tensor == 1:
        raise ConfigError("learner.sequence_parallel = true needs learner.tensor_parallel_size above 1")
