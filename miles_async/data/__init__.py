"""Prompts: read, checked and tokenized once, then addressed by their position in an endless order.

Promises: a row that cannot be used is refused with its file and line, never skipped; the prompt at a position is a pure
function of position, seed, weights and the numbers of prompts, so a resumed run goes on exactly where the first one
stopped.
"""

from miles_async.data.dealing import order, prompt_at
from miles_async.data.fitting import Loaded
from miles_async.data.prompt import DataError, Prompt
from miles_async.data.source import bytes_to_read, counts, fingerprint, load_counted, load_prompts

__all__ = [
    "DataError",
    "Loaded",
    "Prompt",
    "bytes_to_read",
    "counts",
    "fingerprint",
    "load_counted",
    "load_prompts",
    "order",
    "prompt_at",
]
