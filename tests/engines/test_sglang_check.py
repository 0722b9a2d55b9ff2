"""Which servers can be engines of a run, which flags they may be given, and which token ids may reach them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from embedded_engines import engines
from hypothesis import given
from hypothesis import strategies as st

from miles_async.cli.load import load
from miles_async.config.schema import ConfigError
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.sglang.check import (
    REQUIRED_ENDPOINTS,
    Server,
    UnfitServerError,
    check_server,
    judge,
    until_it_answers,
)
from miles_async.engines.sglang.command import environment
from miles_async.engines.sglang.flags import BREAKING, DECIDED, check_args
from miles_async.engines.token_ids import TokenIdError, check_token_ids

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.toml"
URL = "http://h:1"
OURS = {"model_type": "qwen3", "vocab_size": 512, "architectures": ["Qwen3ForCausalLM"]}
INFO = {"version": "0.5.23", "tp_size": 2, "dp_size": 1, "pp_size": 1, "disaggregation_mode": "null", "dtype": "auto"}
MODEL = {"model_path": "/m", "is_generation": True, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}


# flags


@pytest.mark.parametrize("flag", [*DECIDED, *BREAKING, "--load-format"])
def test_what_something_else_decides_or_what_breaks_a_run_is_refused_in_every_spelling(flag: str) -> None:
    value = "dummy" if flag == "--load-format" else "2"
    for args in ([flag, value], [f"{flag}={value}"], ["--mem-fraction-static", "0.5", flag[:-1] + f"={value}"]):
        with pytest.raises(ConfigError, match=r"^engine\.args: --[a-z-]+ .*") as caught:
            check_args("engine.args", args)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["engine.args", "eval.engine_args"])
def test_other_flags_pass_through_and_a_configuration_is_refused_before_anything_starts(key: str) -> None:
    fine = ["--mem-fraction-static", "0.5", "--dp-size", "1", "--model-impl=auto", "--skip-server-warmup", "x"]
    assert load(QUICKSTART, ["engine.kind=sglang", f"{key}={json.dumps(fine)}"])
    with pytest.raises(ConfigError, match=rf"{key}: --tp-size is not taken, engine.tp_size decides it"):
        load(QUICKSTART, ["engine.kind=sglang", f'{key}=["--tp-size", "4"]'])
    with pytest.raises(ConfigError, match=r"engine.tp_size = 2 needs engine.kind = \"sglang\""):
        load(QUICKSTART, ["engine.tp_size=2"])
    with pytest.raises(ConfigError, match=r"engine.hang_timeout_s = 50 must be more than weights.timeout_s = 60"):
        load(QUICKSTART, ["engine.hang_timeout_s=50"])


def test_log_probs_are_of_what_was_sampled_whatever_the_environment_says(tmp_path: Path) -> None:
    assert "SGLANG_RETURN_ORIGINAL_LOGPROB" not in environment(
        "cuda", tmp_path, {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}
    )


# the check of a server


@pytest.mark.parametrize(
    ("server", "why"),
    [
        ({"missing": ("/weights_checker",)}, r"\(sglang 0.5.23\) has no endpoint /weights_checker"),
        ({"info": INFO | {"version": "0.5.9.post1"}}, r"\(sglang 0.5.9.post1\) is too old: at least 0.5.23"),
        ({"info": {}}, "names no version"),
        ({"info": INFO | {"dp_size": 2}}, "runs with dp_size = 2, an engine needs 1"),
        ({"info": INFO | {"pp_size": 4}}, "runs with pp_size = 4"),
        ({"info": INFO | {"disaggregation_mode": "prefill"}}, "runs with disaggregation_mode = prefill"),
        ({"model": MODEL | {"is_generation": False}}, "does not generate"),
        ({"model": MODEL | {"model_type": "llama"}}, "another model: model_type = llama .* the run's has qwen3"),
        ({"config": {"vocab_size": 500}}, "another model: vocab_size = 500 .* the run's has 512"),
    ],
)
def test_a_server_that_cannot_be_an_engine_is_refused_with_one_line(server: dict[str, Any], why: str) -> None:
    with pytest.raises(UnfitServerError, match=why) as caught:
        judge(Server(**{"url": URL, "info": INFO, "model": MODEL} | server), OURS, "float32")
    assert URL in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_fits_passes_and_what_is_odd_is_said() -> None:
    assert judge(Server(URL, INFO, MODEL), OURS, "float32") == []
    assert judge(Server(URL, INFO | {"version": "0.6.0rc1"}, MODEL, config={"vocab_size": 512}), OURS, "float32") == []
    (line,) = judge(Server(URL, INFO | {"dtype": "bfloat16"}, MODEL), OURS, "float32")
    assert "computes in bfloat16" in line
    (line,) = judge(Server(URL, INFO, MODEL | {"architectures": ["Other"]}), OURS, "float32")
    assert "architectures ['Other']" in line


def test_a_server_that_returns_no_experts_is_refused_where_they_are_replayed() -> None:
    said = INFO | {"enable_return_routed_experts": True}
    assert judge(Server(URL, said, MODEL), OURS, "float32", routes=True) == []
    for info in (INFO, INFO | {"enable_return_routed_experts": False}):
        assert judge(Server(URL, info, MODEL), OURS, "float32") == []
        with pytest.raises(UnfitServerError, match=r"returns no experts: .* needs --enable-return-routed-experts"):
            judge(Server(URL, info, MODEL), OURS, "float32", routes=True)


@asynccontextmanager
async def fake_server(without: str | None = None, **info: Any) -> AsyncIterator[str]:
    """The URL of a server that has SGLang's endpoints but ``without``, and does nothing."""
    answers = {"/server_info": INFO | info, "/model_info": MODEL}

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(answers.get(request.path, {}))

    app = web.Application()
    app.add_routes([web.get(path, answer) for path in REQUIRED_ENDPOINTS if path != without])
    async with TestServer(app) as server:
        yield str(server.make_url(""))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(OURS))
    return str(path)


@pytest.mark.parametrize("without", ["/server_info", "/weights_checker", "/generate"])
async def test_a_server_without_an_endpoint_is_refused_with_its_name(qwen: str, without: str) -> None:
    async with fake_server(without) as url, aiohttp.ClientSession() as session:
        with pytest.raises(UnfitServerError, match=f"has no endpoint {without}"):
            await check_server(EngineClient(url, session), qwen, "float32")


async def test_the_check_reads_a_server_as_it_is(qwen: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with fake_server() as url:
            client = EngineClient(url, session)
            await until_it_answers(client, 5.0)
            assert await check_server(client, qwen, "float32") == []
        async with fake_server(dp_size=8) as url:
            with pytest.raises(UnfitServerError, match="dp_size = 8"):
                await check_server(EngineClient(url, session), qwen, "float32")
        with pytest.raises(EngineError, match=r"/model_info.*, for 0\.1 s"):
            await until_it_answers(EngineClient("http://127.0.0.1:9", session), 0.1)


async def test_an_embedded_engine_passes_for_its_own_model_only(digits_model: Path, qwen: str) -> None:
    with engines(digits_model, 1, "--api-key", "k") as (engine,):
        async with aiohttp.ClientSession() as session:
            client = EngineClient(engine.url, session, "k", vocab_size=16)
            assert await check_server(client, str(digits_model), "float32") == []
            (line,) = await check_server(client, str(digits_model), "bfloat16")
            assert "computes in float32" in line
            with pytest.raises(UnfitServerError, match=f"{engine.url} serves another model: vocab_size"):
                await check_server(client, qwen, "float32")
            with pytest.raises(UnfitServerError, match=r"refuses engine\.api_key"):
                await check_server(EngineClient(engine.url, session, "x"), str(digits_model), "float32")
            # ids are looked at before they are sent
            body = {"input_ids": [[3, 2], [4, 999]], "sampling_params": {"max_new_tokens": 1}}
            with pytest.raises(
                EngineError, match=r"not sent: input_ids of prompt 1: token id 999 at position 1"
            ) as caught:
                await client.generate(body)
            assert caught.value.status == 400
            assert await client.generate(body | {"input_ids": [[3, 2], [4, 5]]})


# token ids

TOKEN = st.integers(-3, 20)


@given(st.lists(st.lists(TOKEN, max_size=5), max_size=4), st.lists(TOKEN, max_size=3))
def test_exactly_the_ids_of_the_vocabulary_pass(prompts: list[list[int]], stops: list[int]) -> None:
    fits = all(0 <= token < 16 for token in [*stops, *(token for prompt in prompts for token in prompt)])
    sampling = {"stop_token_ids": stops}
    bodies = [{"input_ids": prompts, "sampling_params": [sampling] * max(1, len(prompts))}]
    bodies += [{"input_ids": prompt, "sampling_params": sampling} for prompt in prompts[:1] if len(prompts) == 1]
    for body in bodies:
        try:
            check_token_ids(body, 16)
        except TokenIdError as error:
            assert not fits and "\n" not in str(error)
        else:
            assert fits


@pytest.mark.parametrize("token", [True, 1.0, "5", None, [1]])
def test_what_is_no_id_is_refused(token: Any) -> None:
    with pytest.raises(TokenIdError, match="input_ids"):
        check_token_ids({"input_ids": [3, token]}, 16)
    with pytest.raises(TokenIdError, match="a list of token ids"):
        check_token_ids({"input_ids": [[3], 4]}, 16)
