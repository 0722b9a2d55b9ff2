"""The learner's process groups and the few collectives its step needs itself.

Promises: one set of groups for each process; every collective has a deadline, and passing it names the ranks waited for;
with one rank no collective is entered; over gloo there is one group for the same ranks, however many Megatron asks for.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from miles_async.config.schema import Model
from miles_async.train.ranks import Ranks
from miles_async.weights.interface import collectives_over

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class RanksSilent(TimeoutError):
    """Other learner ranks did not arrive at a collective in time, or their process is gone."""


class LearnerGroups:
    """Megatron's parallel state of this process, in the layout of ``ranks``. One at a time in a process.

    ``rank``, ``world_size``: of all processes; ``dp_rank``, ``dp_size``: of the data-parallel replicas (ranks.py), over which
    the collectives below go unless they say otherwise: the processes of a replica have the same share of a batch.

    writes_beside: checkpoints are written while steps are trained. ``writers``: the group of the threads that do it, of all
    ranks, over gloo; None: all ranks' own one serves.
    """

    def __init__(self, device: torch.device, ranks: Ranks, *, timeout_s: float, writes_beside: bool = False) -> None:
        if dist.is_initialized():
            raise RuntimeError("this process has a torch.distributed group already; close it before the learner starts")
        self.rank, self.world_size, self.device = ranks.rank, ranks.world_size, device
        self.dp_rank, self.dp_size, self.layout = ranks.dp_rank, ranks.dp_size, ranks.layout
        self._timeout_s = timeout_s
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # where all ranks are on this machine, gloo is not to resolve its host name, which containers often cannot
        is_one_machine = ranks.init_method.startswith(("file://", "tcp://127.0.0.1", "tcp://localhost"))
        with contextlib.ExitStack() as until_closed:
            until_closed.enter_context(collectives_over(gloo=LOOPBACK if is_one_machine else None))
            self._meet(ranks, writes_beside=writes_beside)
            self._until_closed = until_closed.pop_all()

    def _meet(self, ranks: Ranks, *, writes_beside: bool) -> None:
        limit = datetime.timedelta(seconds=self._timeout_s)
        with self.waiting("the start of"):
            dist.init_process_group(
                "nccl" if self.device.type == "cuda" else "gloo",
                init_method=ranks.init_method,
                rank=ranks.rank,
                world_size=ranks.world_size,
                timeout=limit,
            )
            self._split()
            # collectives of two threads in one group would meet each other's
            self.writers: Any = None
            if writes_beside and ranks.world_size > 1:
                self.writers = dist.new_group(backend="gloo", timeout=limit)

    def _split(self) -> None:
        """Make the groups of ranks that do something together, by the layout."""
        from megatron.core import parallel_state

        layout = self.layout
        with _shared_groups() if self.device.type == "cpu" else contextlib.nullcontext():
            parallel_state.initialize_model_parallel(
                layout.tensor,
                layout.pipeline,
                layout.virtual if layout.virtual > 1 else None,
                context_parallel_size=layout.context,
                expert_model_parallel_size=layout.expert,
                expert_tensor_parallel_size=layout.expert_tensor,
                distributed_timeout_minutes=max(1, round(self._timeout_s / 60)),
            )
        self._dp: Any = parallel_state.get_data_parallel_group()
        self._pp: Any = parallel_state.get_pipeline_model_parallel_group()
        # who has the other parts of the vocabulary, and the other tokens of a micro-batch; None: nobody
        self.tensor_group: Any = parallel_state.get_tensor_model_parallel_group() if layout.tensor > 1 else None
        self.context_group: Any = parallel_state.get_context_parallel_group() if layout.context > 1 else None
        first = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
        first_experts = parallel_state.get_expert_data_parallel_rank() == 0
        # whether rank 0 needs this one to have the whole model
        self.exports = first or first_experts if layout.splits_model else self.rank == 0
        self.context_rank = parallel_state.get_context_parallel_rank()

    def gather(self, values: list[float]) -> torch.Tensor:
        """The values of every data-parallel rank: [dp_size, len(values)] float64 on the CPU."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.dp_size == 1:
            return mine[None]
        mine = mine.to(self.device)
        rows = [torch.empty_like(mine) for _ in range(self.dp_size)]
        with self.waiting("the batch sizes of"):
            dist.all_gather(rows, mine, group=self._dp)
        return torch.stack(rows).cpu()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over data-parallel ranks of a float64 tensor, in place."""
        if self.dp_size > 1:
            with self.waiting("the metrics of"):
                dist.all_reduce(values, group=self._dp)
        return values

    def most(self, mine: int) -> int:
        """The largest of the replicas' numbers."""
        return int(self.gather([float(mine)]).max())

    def from_last_stage(self, values: torch.Tensor) -> torch.Tensor:
        """What the last stage of this rank's pipeline has, on the CPU or the device; elsewhere ``values`` says of which shape
        and type it is."""
        if self.layout.pipeline == 1:
            return values
        theirs = values.to(self.device, copy=True)
        with self.waiting("the last stage among"):
            dist.broadcast(theirs, src=dist.get_process_group_ranks(self._pp)[-1], group=self._pp)
        return theirs.to(values.device)

    def own_columns(self, of_replica: torch.Tensor) -> torch.Tensor:
        """Of [rows, columns] those columns that this tensor-parallel rank has where they share the sequence."""
        if not self.layout.sequence:
            return of_replica
        return of_replica.chunk(self.layout.tensor, dim=1)[self.tensor_group.rank()]

    def any(self, mine: bool) -> bool:
        """Whether it is so on any data-parallel rank."""
        return mine if self.dp_size == 1 else bool(self.sum(torch.tensor([float(mine)], device=self.device)) > 0)

    def sum_on_cpu(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over data-parallel ranks of a small tensor on the CPU; a new one."""
        return self.sum(values.to(self.device, copy=True)).to(values.device)

    def concatenate(self, values: torch.Tensor) -> torch.Tensor:
        """The [n] tensors of all data-parallel ranks, on the CPU, one after the other; n may differ. Returns [sum of n]."""
        if self.dp_size == 1:
            return values
        sizes = self.gather([float(len(values))])[:, 0].long().tolist()
        mine = torch.zeros(max(sizes), dtype=values.dtype, device=self.device)
        mine[: len(values)] = values.to(self.device)
        rows = [torch.empty_like(mine) for _ in sizes]
        with self.waiting("the tokens of"):
            dist.all_gather(rows, mine, group=self._dp)
        return torch.cat([row[:size] for row, size in zip(rows, sizes, strict=True)]).to(values.device)

    def agree(self, what: str, text: str = "", *, group: Any = None) -> str:
        """Rank 0's ``text``, on every rank; also a barrier. group: ``writers``, or None. (Sent as bytes: torch would pickle an
        object.)"""
        if self.world_size == 1:
            return text
        device = self.device if group is None else torch.device("cpu")
        mine = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
        size = torch.tensor([len(mine)], device=device)
        with self.waiting(f"{what} from rank 0 and"):
            dist.broadcast(size, src=0, group=group)
            theirs = mine if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8, device=device)
            if len(theirs):
                dist.broadcast(theirs, src=0, group=group)
            dist.barrier(group=group)
        return bytes(theirs.tolist()).decode()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Turn a failed or timed-out collective into RanksSilent, which says who was waited for, for what."""
        try:
            yield
        except (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError) as error:
            raise RanksSilent(self._silent(what, error)) from error
        except RuntimeError as error:  # gloo has no class of its own for a timeout or a lost peer
            if not any(word in str(error).lower() for word in ("timed out", "timeout", "connection", "gloo")):
                raise
            raise RanksSilent(self._silent(what, error)) from error

    def _silent(self, what: str, error: Exception) -> str:
        others = ", ".join(str(r) for r in range(self.world_size) if r != self.rank) or "none"
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return (
            f"learner rank {self.rank} waited for {what} learner ranks {others} "
            f"(deadline learner.grad_reduce_timeout_s = {self._timeout_s:g} s): {first_line}"
        )

    def close(self) -> None:
        """Leave the groups. The process may build new ones afterwards."""
        self._join()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._until_closed.close()

    def _join(self) -> None:
        """Forget the groups of :meth:`_split`."""
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()


@contextlib.contextmanager
def _shared_groups() -> Iterator[None]:
    """Inside the ``with``, ``new_group`` makes one group for the same ranks, and none for all of them.

    Of Megatron's twenty each would have three threads that poll, and the ranks one meeting more. Nobody enters collectives of
    two of them at once, for which NCCL has them apart.
    """
    everybody = tuple(range(dist.get_world_size()))
    made: dict[tuple[int, ...], Any] = {everybody: dist.group.WORLD}
    new_group = dist.new_group

    def shared(ranks: list[int] | None = None, **options: Any) -> Any:
        key = everybody if ranks is None else tuple(sorted(ranks))
        if key not in made:
            made[key] = new_group(ranks, **options)
        return made[key]

    dist.new_group = shared
    try:
        yield
    finally:
        dist.new_group = new_group


def device_of(wanted: str, rank: int) -> torch.device:
    """Where a rank computes, by ``model.device``. Raises ValueError: CUDA is wanted, and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError('model.device = "cuda", but torch sees no CUDA device; allowed here: "auto", "cpu"')
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())


def dtype_of(model: Model) -> torch.dtype:
    """What the model computes in, and what its exports are in."""
    return torch.bfloat16 if model.dtype == "bfloat16" else torch.float32
