"""What a run of ``bench simulator_table`` has in the place of a model: engines and a learner that take the time of a world."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.lib.predicted.world import from_environment
from benchmarks.lib.schedule.parts import MAX_RUNNING, TracedEngine, WaitingLearner
from benchmarks.lib.synthetic.batch import Latency
from benchmarks.lib.synthetic_engine import SyntheticEngine
from bus.codec import TOKENS
from bus.messages import Group
from miles_async.engines.kinds.base import EngineHost
from miles_async.text.tokenizer import Tokenizer


class WorldEngine(TracedEngine):
    def engine(self, host: EngineHost) -> SyntheticEngine:
        world = from_environment()
        return SyntheticEngine(
            host.name,
            latency=Latency(world.step_s, world.request_s, world.prefill_s),
            lengths=world,
            max_running_requests=MAX_RUNNING,
            vocab_size=Tokenizer(host.model_path).vocab_size,
            update_s=world.update_s,
        )


class WorldLearner(WaitingLearner):
    def seconds(self, groups: Sequence[Group]) -> float:
        world = from_environment()
        prompts = sum(len(group.prompt_tokens) * len(group.samples) for group in groups)
        tokens = (prompts + sum(len(s.tokens) for group in groups for s in group.samples)) // TOKENS.itemsize
        return world.train_s + world.train_token_s * tokens
