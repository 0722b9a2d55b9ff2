"""Modules of reward functions as users write them: some that misbehave, and some that score in every form."""

from __future__ import annotations

from pathlib import Path

MISBEHAVING = """
import asyncio, os, re, time, sys
import helper

calls = 0

async def good(sample):
    await asyncio.sleep(0)
    return len(sample.response) + sample.metadata.get("bonus", 0) + sum(sample.tokens)

def by_command(sample):
    global calls
    calls += 1
    print("to stdout, which is not the wire")
    match sample.response:
        case "hang": time.sleep(3600)
        case "hold the interpreter": re.match(r"(a+)+$", "a" * 60 + "b")
        case "die": os._exit(3)
        case "crash": os.kill(os.getpid(), 11)
        case "raise": raise ValueError("two\\nlines")
        case "exit": sys.exit("enough")
        case "text": return "1.0"
        case "none": return None
        case "nan": return float("nan")
        case "pid": return os.getpid()
        case "calls": return calls
    return helper.ONE

async def blocks(sample):
    time.sleep(3600)

def two(sample, other): return 1.0
def optional(sample, other=1): return 1.0
NUMBER = 3
"""

SCORING = """
import math, os, time
import numpy

def by_command(sample):
    match sample.response:
        case "hang": time.sleep(3600)
        case "die": os._exit(3)
        case "raise": raise ValueError("no")
        case "dict": return {"total": 2, "style": 0.5}
        case "numpy": return {"total": numpy.float32(2), "style": numpy.array(0.5)}
        case "no total": return {"style": 0.5}
        case "empty": return {}
        case "text in it": return {"total": 1.0, "pred": "7"}
        case "nan in it": return {"total": 1.0, "style": math.nan}
        case "a number for a name": return {1: 1.0}
        case "many": return {str(i): 1.0 for i in range(65)}
    return 1.0

def length(sample): return len(sample.response)

async def rank(samples):
    commands = {sample.response for sample in samples}
    if "hang" in commands: time.sleep(3600)
    if "die" in commands: os._exit(3)
    if "short" in commands: return [1.0]
    if "none" in commands: return [1.0] * (len(samples) - 1) + [None]
    if "one number" in commands: return 1.0
    if "dicts" in commands: return [{"total": i, "n": len(samples)} for i, _ in enumerate(samples)]
    if "numpy" in commands: return numpy.arange(len(samples))
    order = sorted(len(sample.response) for sample in samples)
    return [order.index(len(sample.response)) for sample in samples]

def two(one, other): return 1.0
"""


def misbehaving(directory: Path) -> Path:
    """``user_rewards.py`` in ``directory``, and a module beside it that it imports."""
    (directory / "helper.py").write_text("ONE = 1\n")
    path = directory / "user_rewards.py"
    path.write_text(MISBEHAVING)
    return path


def scoring(directory: Path) -> Path:
    """``mine.py`` in ``directory``."""
    path = directory / "mine.py"
    path.write_text(SCORING)
    return path
