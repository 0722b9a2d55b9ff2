"""``make gpu-check``: each of its parts runs, here on a CPU and tiny; without CUDA it is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: gpu-check needs a CUDA device: torch {torch.__version__} sees none\n"


def test_every_part_runs_and_finds_what_it_should(tmp_path: Path) -> None:
    found = {name: gpu_check.part(name, "cpu", tmp_path) for name in gpu_check.PARTS}
    assert {name: part["ok"] for name, part in found.items()} == dict.fromkeys(gpu_check.PARTS, True), found
    ways = found["learner"]["to_float32_on_a_cpu"]
    assert len(ways) == 4 and all(way["gradient"] > 0 for way in ways.values())  # bfloat16 is not float32
    pushes = found["engine"]["push"]
    assert pushes["disk"]["seconds"] > 0 and pushes["collective, gloo"]["seconds"] > 0
    assert pushes["collective, nccl"] == {"refused": "there is no CUDA device"}
    assert found["engine"]["tokens_per_s"] > 0 and found["speed"]["tokens_per_s"] > 0
    assert found["speed"]["mfu"] is None and found["speed"]["peak_memory_gb"] > 0


def test_a_part_that_fails_is_said_and_costs_the_others_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    found = gpu_check.run("cpu", ["absent"])
    assert not found["ok"] and found["parts"]["absent"]["error"] == "exit code 2; it says on stderr why"
    assert "absent" in capfd.readouterr().err
    assert found["command"] == "python -m benchmarks.gpu_check" and found["device"] == "cpu"
