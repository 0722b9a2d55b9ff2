"""A run on engines that somebody else started: they are used, brought to the learner's very bits, and left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from embedded_engines import engines
from launching import TINY, launch, recording_environment, summary, write_config

from miles_async.engines.client import EngineClient
from miles_async.models.builtin import make_model


@pytest.mark.parametrize("transport", ["collective", "disk"])
async def test_engines_end_with_the_bits_of_the_version_that_they_report(tmp_path: Path, transport: str) -> None:
    make_model("builtin:digits", tmp_path / "model", seed=1)
    with engines(tmp_path / "model", 2) as servers:
        config = write_config(
            tmp_path,
            model={"hf_checkpoint": str(tmp_path / "model")},
            run=TINY["run"] | {"num_steps": 6},
            engine={"kind": "external", "urls": [server.url for server in servers]},
            weights={"transport": transport},
            topology={"learner": "recording_learner.ChecksumLearner"},
        )
        result = launch(config, tmp_path / "run", env=recording_environment())
        assert result.returncode == 0, result.stderr
        assert summary(tmp_path / "run")["max_token_lag"] <= 2
        versions: list[int] = []
        async with aiohttp.ClientSession() as session:
            for server in servers:
                assert server.process.poll() is None
                client = EngineClient(server.url, session)
                version = (await client.model_info())["weight_version"]
                versions.append(int(version))
                exported = json.loads((tmp_path / "run" / "checksums" / f"{version}.json").read_text())
                answer: Any = await client.checksums()
                assert answer["ranks"][0]["checksums"] == exported
                # and it generates: nothing was left paused
                body = {"input_ids": [3, 2, 4, 2], "sampling_params": {"max_new_tokens": 2}}
                answer = await client.generate(body, timeout=10)
                assert answer["meta_info"]["weight_version"] == version
        assert max(versions) >= 3  # lag 2: step 6 was sampled by version 3 or later, by one engine at least
