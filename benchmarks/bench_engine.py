"""The embedded engine over HTTP against the same model in a plain padded loop and in Hugging Face ``generate``.

Tokens per second for 1, 8 and 32 concurrent requests of 32 prompt and 128 new tokens, sampled, with log-probs, on a 4x256
Qwen3 (about the smallest model whose matrices matter). The padded loop is the ceiling: in this process, one length, no
admission, no HTTP. Then the quickstart's own load: groups of 8 responses of 2 to 12 tokens, one request each, on the
75k-parameter model. All on one thread each, run in turns; medians. CPU times are of the engine's process, or of this one,
and say more than the rates where other work shares the cores.
``miles-async bench engine`` or ``python -m benchmarks.bench_engine``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import aiohttp
import psutil
import torch
import torch.nn.functional as F

PROMPT, NEW = 32, 128
CONCURRENCY = (1, 8, 32)
GROUP, GROUPS_IN_FLIGHT = 8, 32
START_TIMEOUT_S = 120.0


class PaddedLoop:
    """The plainest batched sampler: a Qwen3 written out, static cache, every row as long as every other."""

    def __init__(self, model: Any) -> None:
        self.config = config = model.config
        self.weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        half = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        theta = config.rope_parameters["rope_theta"]
        angles = torch.outer(torch.arange(PROMPT + NEW).float(), theta**-half).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weights[name + ".weight"], self.config.rms_norm_eps)

    def _rope(self, x: torch.Tensor, at: slice) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos[at] + torch.cat((-second, first), -1) * self.sin[at]

    def _forward(self, ids: torch.Tensor, cache: list[tuple[torch.Tensor, torch.Tensor]], start: int) -> torch.Tensor:
        """Logits of the last position; ``ids`` ``[batch, tokens]`` stand at ``start``..."""
        config, rows = self.config, ids.shape[0]
        at = slice(start, start + ids.shape[1])
        x = F.embedding(ids, self.weights["model.embed_tokens.weight"])
        for index, (keys, values) in enumerate(cache):
            layer = f"model.layers.{index}."

            def project(y: torch.Tensor, name: str, layer: str = layer) -> torch.Tensor:
                return F.linear(y, self.weights[f"{layer}{name}_proj.weight"])

            y = self._norm(x, layer + "input_layernorm")
            q, k, v = (
                project(y, f"self_attn.{part}").view(rows, -1, n, config.head_dim)
                for part, n in (
                    ("q", config.num_attention_heads),
                    ("k", config.num_key_value_heads),
                    ("v", config.num_key_value_heads),
                )
            )
            q = self._rope(self._norm(q, layer + "self_attn.q_norm").transpose(1, 2), at)
            keys[:, :, at] = self._rope(self._norm(k, layer + "self_attn.k_norm").transpose(1, 2), at)
            values[:, :, at] = v.transpose(1, 2)
            k, v = keys[:, :, : at.stop], values[:, :, : at.stop]
            a = F.scaled_dot_product_attention(q, k, v, is_causal=start == 0, enable_gqa=True)
            x = x + project(a.transpose(1, 2).flatten(2), "self_attn.o")
            y = self._norm(x, layer + "post_attention_layernorm")
            x = x + project(F.silu(project(y, "mlp.gate")) * project(y, "mlp.up"), "mlp.down")
        return F.linear(self._norm(x[:, -1], "model.norm"), self.weights["lm_head.weight"])

    @torch.inference_mode()
    def run(self, batch: int) -> None:
        config = self.config
        size = (batch, config.num_key_value_heads, PROMPT + NEW, config.head_dim)
        cache = [(torch.zeros(size), torch.zeros(size)) for _ in range(config.num_hidden_layers)]
        logits = self._forward(torch.randint(config.vocab_size, (batch, PROMPT)), cache, 0)
        for step in range(NEW):
            logprobs = torch.log_softmax(logits, -1)
            token = torch.multinomial(logprobs.exp(), 1)
            logprobs.gather(1, token)
            if step < NEW - 1:
                logits = self._forward(token, cache, PROMPT + step)


@contextlib.asynccontextmanager
async def engine(directory: Path) -> AsyncIterator[tuple[str, psutil.Process]]:
    """An engine process on ``directory``: its URL, and itself."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "miles_async.engines.embedded.server", "--model-path", str(directory), "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            line = (await process.stdout.readline()).decode()
        if not line.startswith("ready at "):
            raise RuntimeError(f"the engine did not start: exit code {await process.wait()}")
        yield line.split()[-1], psutil.Process(process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def post(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> int:
    """Output tokens of one /generate request."""
    async with session.post(url + "/generate", data=json.dumps(body).encode()) as response:
        answer = await response.json()
        assert response.status == 200, answer
    answers = answer if isinstance(answer, list) else [answer]
    return sum(len(one["output_ids"]) for one in answers)


async def ask_alike(session: aiohttp.ClientSession, url: str, concurrency: int, vocab: int) -> None:
    rng = random.Random(concurrency)
    sampling = {"max_new_tokens": NEW, "temperature": 1.0, "ignore_eos": True}
    bodies = [
        {
            "input_ids": [rng.randrange(vocab) for _ in range(PROMPT)],
            "sampling_params": sampling,
            "return_logprob": True,
        }
        for _ in range(concurrency)
    ]
    counts = await asyncio.gather(*(post(session, url, body) for body in bodies))
    assert sum(counts) == concurrency * NEW


async def ask_groups(session: aiohttp.ClientSession, url: str, n_groups: int) -> int:
    """The quickstart's load; output tokens."""
    rng = random.Random(0)
    left = iter(range(n_groups))

    async def ask() -> int:
        tokens = 0
        for _ in left:
            sampling = [
                {"max_new_tokens": rng.randint(2, 12), "sampling_seed": rng.getrandbits(40)} for _ in range(GROUP)
            ]
            prompt = [rng.randint(3, 12), 2, rng.randint(3, 12), 2]
            body = {"input_ids": [prompt] * GROUP, "sampling_params": sampling, "return_logprob": True}
            tokens += await post(session, url, body)
        return tokens

    return sum(await asyncio.gather(*(ask() for _ in range(GROUPS_IN_FLIGHT))))


def hugging_face(model: Any) -> Callable[[int], None]:
    def run(batch: int) -> None:
        ids = torch.randint(model.config.vocab_size, (batch, PROMPT))
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, min_new_tokens=NEW, max_new_tokens=NEW
        )

    return run


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def timed(work: Awaitable[Any], process: psutil.Process) -> tuple[float, float]:
    """Seconds, and those of a core that ``process`` took."""
    begin, used = time.perf_counter(), cpu_s(process)
    await work
    return time.perf_counter() - begin, cpu_s(process) - used


def per_token(totals: dict[tuple[str, int], float], name: str, repeats: int) -> dict[str, float]:
    return {str(n): round(1e6 * totals[name, n] / (repeats * n * NEW), 1) for n in CONCURRENCY}


async def _run(repeats: int, n_groups: int) -> dict[str, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from miles_async.models.builtin import make_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        dtype=torch.float32,
    )
    model = Qwen3ForCausalLM(config).eval()
    padded, generate = PaddedLoop(model), hugging_face(model)
    seconds: dict[tuple[str, int], list[float]] = {}
    # of all repeats together: a process's times come in hundredths of a second
    cpu: dict[tuple[str, int], float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as root:
        model.save_pretrained(Path(root) / "model")
        make_model("builtin:digits", Path(root) / "digits", 1)
        async with aiohttp.ClientSession() as session:
            async with engine(Path(root) / "model") as (url, process):
                await ask_alike(session, url, 8, config.vocab_size)  # warm-up of all three
                padded.run(8)
                generate(8)
                for _ in range(repeats):
                    for n in CONCURRENCY:
                        took, used = await timed(ask_alike(session, url, n, config.vocab_size), process)
                        seconds.setdefault(("engine_http", n), []).append(took)
                        cpu["engine_http", n] += used
                        for name, function in (("padded_loop", padded.run), ("hf_generate", generate)):
                            begin, used = time.perf_counter(), time.process_time()
                            function(n)
                            seconds.setdefault((name, n), []).append(time.perf_counter() - begin)
                            cpu[name, n] += time.process_time() - used
            groups = []
            async with engine(Path(root) / "digits") as (url, process):
                await ask_groups(session, url, GROUPS_IN_FLIGHT)
                used = cpu_s(process)
                for _ in range(repeats):
                    begin = time.perf_counter()
                    tokens = await ask_groups(session, url, n_groups)
                    groups.append((n_groups * GROUP / (time.perf_counter() - begin), tokens / (n_groups * GROUP)))
                group_cpu = (cpu_s(process) - used) / (repeats * n_groups * GROUP)
    rates = {
        name: {str(n): round(n * NEW / statistics.median(seconds[name, n]), 1) for n in CONCURRENCY}
        for name in ("engine_http", "padded_loop", "hf_generate")
    }
    cpu_us = {name: per_token(cpu, name, repeats) for name in rates}
    samples = statistics.median(rate for rate, _ in groups)
    return {
        "tokens_per_s": rates,
        "ratio_to_padded_loop": {n: round(v / rates["padded_loop"][n], 3) for n, v in rates["engine_http"].items()},
        "ratio_to_hf_generate": {n: round(v / rates["hf_generate"][n], 3) for n, v in rates["engine_http"].items()},
        "cpu_us_per_token": cpu_us,
        "cpu_of_padded_loop_to_engine": {
            n: round(v / cpu_us["engine_http"][n], 3) for n, v in cpu_us["padded_loop"].items()
        },
        "quickstart_groups": {
            "cpu_us_per_sample": round(1e6 * group_cpu, 1),
            "samples_per_s": round(samples, 1),
            "tokens_per_s": round(samples * groups[0][1], 1),
            "tokens_per_sample": round(groups[0][1], 2),
            "groups_in_flight": GROUPS_IN_FLIGHT,
            "group_size": GROUP,
        },
        "model": "Qwen3 4 layers x 256, vocabulary 512, float32",
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "repeats": repeats,
        "threads": 1,
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def run(repeats: int = 5, n_groups: int = 600) -> dict[str, Any]:
    """Tokens and samples per second, medians of ``repeats`` runs in turns; the load average tells how quiet it was."""
    return asyncio.run(_run(repeats, n_groups))


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
