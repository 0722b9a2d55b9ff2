"""The learner: one batch after the other, versions, and what it does again after it died.

Promises: it waits for nobody but for a batch; a step whose weights are held has several batches and makes one version; one that
dies comes back with its last checkpoint and trains again what it trained since, the batch under way too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from miles_async.simulation.events import Events, Rank
from miles_async.simulation.samples import SimulatedGroup
from miles_async.simulation.settings import SimulationConfig
from miles_async.simulation.training import LearnerTime


class SimulatedLearner:
    """``ended`` is called after each batch, ``ticked`` before it where the batch has made a version."""

    def __init__(
        self, config: SimulationConfig, events: Events, ticked: Callable[[], None], ended: Callable[[], None]
    ) -> None:
        self._config, self._events, self._ticked, self._ended = config, events, ticked, ended
        self._time = LearnerTime(config)
        self.version = 0
        self.is_free = True
        self.ticks = True  # whether the weights change with the last batch
        self.train_s = self.wait_s = 0.0  # of the step under way
        self._free_since = self._down_until = 0.0
        self._batch_s = self._ends = 0.0  # of the last batch: how long it is trained, and until when
        self._since_save_s = 0.0  # that batches since the last checkpoint took

    def train(self, groups: Sequence[SimulatedGroup], *, ticks: bool) -> None:
        """Begin a batch. ticks: it is the last one of its step."""
        learner, now, step = self._config.learner, self._events.now, self.version + 1
        self.is_free, self.ticks = False, ticks
        self._batch_s = self._time.seconds(groups)
        if ticks and self.offers(step):
            self._batch_s += learner.export_s
        save_s = learner.save_s if ticks and step % learner.save_interval == 0 else 0.0
        self.wait_s += now - self._free_since
        self._ends = max(now, self._down_until) + self._config.links.batch_s + self._batch_s + save_s
        self._events.at(self._ends, Rank.TRAINED, 0, self._trained)

    def offers(self, version: int) -> bool:
        """Whether engines are given this version."""
        return version % self._config.weights.update_interval == 0

    def die(self, index: int) -> None:
        back = self._events.now + self._config.failures.learner_down_s + self._since_save_s
        if self.is_free:
            self._down_until = back
        else:
            self._ends = back + self._batch_s

    def _trained(self) -> None:
        now = self._events.now
        if now < self._ends:  # it died meanwhile
            self._events.at(self._ends, Rank.TRAINED, 0, self._trained)
            return
        self.is_free, self._free_since = True, now
        self.train_s += self._batch_s
        self._since_save_s += self._batch_s
        if self.ticks:
            self.version += 1
            if self.version % self._config.learner.save_interval == 0:
                self._since_save_s = 0.0
            self._ticked()
            self.train_s = self.wait_s = 0.0
        self._ended()
