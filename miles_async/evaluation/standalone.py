"""One point of an evaluation without a run: the datasets of ``[eval]``, at a Hugging Face directory, on an engine of its own.

Promises: prompts, sampling, seeds, rewards and metrics are those that a run's evaluator would take at these weights; the engine
is started for it and gone at the end, however that comes; no Redis, no run directory is touched.
"""

from __future__ import annotations

import contextlib
from typing import Any

import aiohttp

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.kinds.table import KINDS, kind_of
from miles_async.evaluation.datasets import load_datasets
from miles_async.evaluation.hooks import EVAL_FUNCTION
from miles_async.evaluation.point import AGAIN, Evaluation, Result
from miles_async.rewards import Grader
from miles_async.text.tokenizer import Tokenizer


class EvalError(RuntimeError):
    """The point was not made."""


def check_eval(config: RunConfig) -> None:
    """Refuse a configuration that has nothing to evaluate, or no engine that could be started. Raises ConfigError."""
    if not config.eval.datasets:
        raise ConfigError("eval.datasets is empty: miles-async eval needs a section [eval.datasets.NAME]")
    if not kind_of(config.engine).OURS:
        others = " or ".join(f"--set engine.kind={name}" for name, kind in KINDS.all_ours().items() if kind.OURS)
        raise ConfigError(
            f'engine.kind = "{config.engine.kind}": miles-async eval starts an engine of its own; {others}'
        )


async def evaluate(config: RunConfig, model: str, version: int) -> dict[str, Result]:
    """The result of every dataset, by name. model: a Hugging Face directory; version: what its tokens are said to be of.

    Raises ConfigError, DataError, TokenizerError (bad input), EvalError (the engine failed, more than once), and what
    ``eval.eval_function`` raises.
    """
    check_eval(config)
    tokenizer = Tokenizer(model)
    datasets = load_datasets(config, tokenizer)
    function = next(iter(EVAL_FUNCTION.functions(config)), None)
    results: dict[str, Result] = {}
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(kind_of(config.engine).alone(config, model, str(version)))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        client = EngineClient(url, session, name="the engine", vocab_size=tokenizer.vocab_size)

        async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
            answer = await client.generate(body, config.rollout.request_timeout_s)
            if not isinstance(answer, list):
                raise EngineError(client.name, "/generate", "one answer to several prompts")
            return answer

        for dataset in datasets:
            async with Grader(dataset.config.reward) as grader:
                results[dataset.name] = await _with_patience(
                    lambda attempt, d=dataset, g=grader: Evaluation(d, version, ask, tokenizer, g, f"-{attempt}"),
                    config.rollout.max_attempts,
                    function,
                )
    return results


async def _with_patience(make: Any, attempts: int, function: Any) -> Result:
    for attempt in range(1, attempts + 1):
        try:
            return await make(attempt).run(function)
        except AGAIN as error:
            if attempt == attempts:
                raise EvalError(f"{error} (after {attempts} attempts)") from None
    raise AssertionError("at least one attempt is made")
