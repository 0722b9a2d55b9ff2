"""One training run at an exact lag, in one process: the real engine's scheduler, the real Megatron learner, no queue between.

Step t trains on samples whose generation began with the weights of version ``t - lag`` and went on, behind the
``SPAN_TOKENS``-th token, with the next newer ones, as a run with updates in flight does; so every sample longer than that has
two version spans (at lag 0 one). Seeded: the same arguments give the same numbers.
"""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path

import numpy as np
import torch

from actors.dealer import sampling_seed
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Group, Sample
from miles_async.cli.load import load
from miles_async.config.schema import RunConfig
from miles_async.data import prompt_at
from miles_async.engines.embedded.checkpoint import read_config
from miles_async.engines.embedded.model import Decoder
from miles_async.engines.embedded.protocol import Item
from miles_async.engines.embedded.request import EngineRequest, version_spans
from miles_async.engines.embedded.sampling import NO_TOP_K
from miles_async.engines.embedded.sampling_params import Sampling
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.engines.embedded.text import TextCodec
from miles_async.models import builtin
from miles_async.rewards import RewardSample
from miles_async.rewards.builtin_rewards import graded_match
from miles_async.text.tokenizer import Tokenizer
from miles_async.train.ranks import alone
from miles_async.train.trainer import MegatronTrainer

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart.toml"
SPAN_TOKENS = 2
Weights = dict[str, torch.Tensor]


class LaggedRun:
    """``with LaggedRun(overrides, lag, seed) as run: run.train(steps); run.evaluate()``."""

    def __init__(self, overrides: list[str], lag: int, seed: int) -> None:
        fixed = [f"run.seed={seed}", f"staleness.max_lag={lag}", "run.target_reward=none"]
        self.config: RunConfig = load(QUICKSTART, [*fixed, *overrides])
        self.lag = lag
        self._directory = tempfile.TemporaryDirectory()
        root = Path(self._directory.name)
        path = str(root / "model")
        builtin.make_model(self.config.model.hf_checkpoint, root / "model", seed)
        self.rows = builtin.prompt_rows(str(self.config.data.prompt_data))
        self.tokenizer, self.codec = Tokenizer(path), TextCodec(path)
        self.engine = Decoder(read_config(path), dtype=torch.float32, device=torch.device("cpu"))
        self.trainer = MegatronTrainer(self.config, path, alone(f"file://{root}/meeting"))
        # (version, weights), oldest first: those that generation may still need
        self.history: deque[tuple[int, Weights]] = deque([(0, self.trainer.export())], maxlen=lag + 1)

    def __enter__(self) -> LaggedRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.close()
        self._directory.cleanup()

    def train(self, steps: int) -> list[dict[str, float]]:
        """The metrics of each step."""
        size = self.config.rollout.rollout_batch_size
        curve = []
        for step in range(steps):
            wanted = [prompt_at(step * size + i, len(self.rows), self.config.run.seed, True)[1] for i in range(size)]
            first, then = self.history[0], self.history[min(1, len(self.history) - 1)]
            curve.append(self.trainer.step(self._groups(wanted, step * size, first, then)))
            self.history.append((self.trainer.version, self.trainer.export()))
        return curve

    def evaluate(self) -> float:
        """Mean reward of the newest weights, sampled as in training: 8 responses to each prompt."""
        newest = self.history[-1]
        groups = self._groups(list(range(len(self.rows))), 10**6, newest, newest)
        rewards = [sample.reward for group in groups for sample in group.samples]
        return sum(rewards) / len(rewards)

    def _groups(
        self, prompts: list[int], position: int, first: tuple[int, Weights], then: tuple[int, Weights]
    ) -> list[Group]:
        """A group for each of the prompts, dealt from ``position`` on."""
        n = self.config.rollout.n_samples_per_prompt
        requests = [
            self._request(self.rows[prompt]["input"], sampling_seed(self.config.run.seed, position + place, n) + i)
            for place, prompt in enumerate(prompts)
            for i in range(n)
        ]
        self._generate(requests, first, then)
        groups = []
        for place, prompt in enumerate(prompts):
            row = self.rows[prompt]
            own = requests[place * n : (place + 1) * n]
            samples = tuple(self._sample(i, request, row) for i, request in enumerate(own))
            tokens = pack(self.tokenizer.encode(row["input"]), TOKENS)
            group_id = f"0-{position + place}-0"
            groups.append(
                Group(group_id=group_id, prompt_tokens=tokens, samples=samples, worker="", started=0, finished=0)
            )
        return groups

    def _request(self, text: str, seed: int) -> EngineRequest:
        sampling = Sampling(
            max_new_tokens=self.config.rollout.rollout_max_response_len,
            temperature=1.0,
            greedy=False,
            top_p=1.0,
            top_k=NO_TOP_K,
            min_p=0.0,
            stop=(),
            stop_token_ids=frozenset(),
            ignore_eos=False,
            seed=seed,
            skip_special_tokens=True,
            no_stop_trim=True,
        )
        item = Item(str(seed), self.tokenizer.encode(text), sampling, True, -1)
        return EngineRequest(item, seed, frozenset(self.tokenizer.eos_token_ids), stream=False)

    def _generate(self, requests: list[EngineRequest], first: tuple[int, Weights], then: tuple[int, Weights]) -> None:
        scheduler = Scheduler(
            self.engine, self.codec, max_running=len(requests), max_tokens=1 << 15, version=str(first[0])
        )
        self.engine.load(first[1].items(), complete=True)
        scheduler.submit(requests)
        for _ in range(SPAN_TOKENS):
            scheduler.step()
        if then[0] != first[0]:
            scheduler.pause("retract")
            self.engine.load(then[1].items(), complete=True)
            scheduler.set_version(str(then[0]))
            scheduler.resume()
        while not scheduler.idle:
            scheduler.step()

    def _sample(self, index: int, request: EngineRequest, row: dict[str, str]) -> Sample:
        n = len(request.output)
        assert request.finish is not None
        finish = request.finish["type"]
        text = self.tokenizer.decode(request.output)
        scored = RewardSample(prompt=row["input"], response=text, label=row["label"], finish_reason=finish)
        versions = np.zeros(n, VERSIONS)
        for span in version_spans(request.version_events, request.version, n):
            versions[span["start"] : span["end"]] = int(span["version"])
        return Sample(
            index=index,
            tokens=pack(request.output, TOKENS),
            logprobs=pack(request.logprobs, LOGPROBS),
            loss_mask=pack(np.ones(n), MASK),
            versions=pack(versions, VERSIONS),
            reward=graded_match(scored),
            finish_reason=finish,
            text=text,
        )
