"""The models of a learner, with their optimizers and the random states, into a checkpoint and back.

Promises: what is restored goes on bit for bit, on any number of ranks; a checkpoint with other models than the run's is
refused before anything is loaded. Which files there are is the matter of checkpoint.py. Collective over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config.lora import Lora, described
from miles_async.disk.room import or_nothing
from miles_async.train import checkpoint, rng
from miles_async.train.checkpoint import CheckpointError, LearnerState
from miles_async.train.checkpoint_choice import CheckpointChoice, choose
from miles_async.train.distributed import LearnerGroups
from miles_async.train.kept_weights import KeptWeights
from miles_async.train.parts import StateFiles
from miles_async.train.trained import Trained

_CRITIC, _KEPT = "critic", "kept"


class ModelState:
    """The state of a policy, of a critic where there is one, and of the policy's other weights."""

    def __init__(
        self,
        policy: Trained,
        critic: Trained | None,
        kept: KeptWeights,
        groups: LearnerGroups,
        files: StateFiles,
        lora: Lora | None = None,
    ) -> None:
        self._lora = lora
        self._policy, self._critic, self._kept = policy, critic, kept
        self._groups, self._files = groups, files

    def begin(self, root: Path, state: LearnerState, *, keep: int, beside: bool) -> Callable[[], Path]:
        """What adds a checkpoint to ``root``: durable, and the latest of ``keep``, when it returns its path. Collective itself.

        beside: it writes what is now, whatever is trained meanwhile by another thread, and enters no collective of that one's.
        """
        first, group = self._groups.rank == 0, self._groups.writers if beside else None
        writing = Path(self._groups.agree("a checkpoint", str(checkpoint.begin(root, state.version)) if first else ""))
        there = {"critic": self._critic is not None, "kept": tuple(self._kept.names), "lora": self._lora}
        state = msgspec.structs.replace(state, backend=self._files.backend, **there)
        with or_nothing(writing), self._groups.waiting("the plans of the checkpoint of"):
            write = self._files.begin(self._sharded(self._kept.names, is_loading=False), writing, group, copied=beside)

        def durable() -> Path:
            with or_nothing(writing):
                with self._groups.waiting("the checkpoint shards of"):
                    write()
                path = str(checkpoint.commit(root, writing, state, keep)) if first else ""
            return Path(self._groups.agree("the finished checkpoint", path, group=group))

        return durable

    def choose(self, root: Path, forgotten: int) -> CheckpointChoice:
        """See checkpoint_choice.py: rank 0 looks, all ranks have the answer. Raises CheckpointError on every rank."""
        found = self._on_first("the checkpoint to go on from", lambda: msgspec.json.encode(choose(root, forgotten)))
        return msgspec.json.decode(found, type=CheckpointChoice)

    def load(self, directory: Path, *, verified: bool = False) -> LearnerState:
        """Restore the latest checkpoint in ``directory``, or the one it is.

        ``verified``: its checksums were looked at already. Raises CheckpointError: it is damaged, or does not fit.
        """
        path = checkpoint.resolve(directory)
        if not verified:
            self._on_first(f"the checksums of {path.name}", lambda: b"%d" % checkpoint.verify(path))
        state = checkpoint.read_state(path)
        if state.backend != self._files.backend:
            raise CheckpointError(
                f'{path} was written with learner.train_backend = "{state.backend}", this run has '
                f'"{self._files.backend}": miles-async convert makes a Hugging Face directory of it, to start another run from'
            )
        if state.critic != (self._critic is not None):
            theirs, ours = ("with", "has none") if state.critic else ("without", "has one")
            raise CheckpointError(
                f"{path} was written by a run {theirs} a critic, this run {ours}: "
                "algorithm.advantage_estimator cannot change on the way"
            )
        if state.lora != self._lora:
            raise CheckpointError(
                f"{path} holds {described(state.lora)}, this run trains {described(self._lora)}: learner.lora_rank, lora_alpha "
                "and lora_targets cannot change on the way"
            )
        with self._groups.waiting("the checkpoint shards of"):
            loaded = self._files.load(self._sharded(self._kept.wanted(state.kept), is_loading=True), path)
            self._policy.load_state(loaded)
            self._kept.load_state(loaded.get(_KEPT, {}))
            if self._critic is not None:
                self._critic.load_state(loaded[_CRITIC])
        rng.set_state(loaded["rng"])
        return state

    def _on_first(self, what: str, look: Callable[[], bytes]) -> bytes:
        """What ``look`` gives on rank 0, or its CheckpointError, on every rank."""
        found = b""
        if self._groups.rank == 0:
            try:
                found = b"+" + look()
            except CheckpointError as error:
                found = b"-" + str(error).encode()
        found = self._groups.agree(what, found.decode()).encode()
        if found.startswith(b"-"):
            raise CheckpointError(found[1:].decode())
        return found[1:]

    def _sharded(self, kept: Sequence[str], *, is_loading: bool) -> dict[str, Any]:
        state = {**self._policy.sharded_state(is_loading=is_loading), "rng": rng.get_state()}
        if self._critic is not None:
            state[_CRITIC] = self._critic.sharded_state(is_loading=is_loading)
            self._files.apart(state[_CRITIC], f"{_CRITIC}.")  # both models name their weights alike
        if kept:
            state[_KEPT] = self._kept.sharded_state(kept, self._policy)
            for name, weights in state[_KEPT].items():
                self._files.apart(weights, f"{_KEPT}.{name}.")
        return state
