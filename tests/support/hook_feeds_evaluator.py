"""How the evaluator calls a function of the user's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hook_feed import FINE, Ctx, Outcome, config

from actors.evaluator import Candidate, Evaluator
from miles_async.evaluation.hooks import EVAL_FUNCTION, EVAL_LOG_FUNCTION
from miles_async.evaluation.point import Evaluation
from miles_async.rollout.first_failures import told


def evaluation(path: str, _: Path) -> Outcome:
    stub: Any = SimpleNamespace(dataset=SimpleNamespace(name="seen", config=config()), _tokenizer=None, _ask=None)
    stub._tell = stub.generate = stub.grade = None
    stub._record = {}
    try:
        asyncio.run(Evaluation.run(stub, EVAL_FUNCTION.load(path)))
    except Exception as error:
        return "point", f"an evaluation: {told(error)}"
    return FINE


def evaluation_log(path: str, _: Path) -> Outcome:
    async def one() -> Outcome:
        ctx = Ctx(config())
        record = SimpleNamespace(add_samples=lambda *_: None)
        stub: Any = SimpleNamespace(ctx=ctx, newest=None, record=record, log_function=EVAL_LOG_FUNCTION.load(path))
        stub._close = lambda *_: None
        await Evaluator._report(stub, Candidate(1, 1, Path(), None), {}, 1.0)
        lines = [data["cause"] for kind, data in ctx.events if kind == "eval_log_failed"]
        return ("line", f"eval_log_failed: {lines[0]}") if lines else FINE

    return asyncio.run(one())
