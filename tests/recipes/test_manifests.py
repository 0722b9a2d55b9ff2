"""Manifests for Kubernetes and docker compose are what their readers take, and say what the configuration says."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kuberay_schema import KINDS

from docs.recipes import CPUS, EXAMPLES, GPUS, SHARED, example
from miles_async.cli.load import load
from miles_async.config.schema import ConfigError
from miles_async.recipes.job import Job
from miles_async.recipes.render import RECIPES, render

GRPO, QUICKSTART = EXAMPLES / "cluster" / "grpo.toml", EXAMPLES / "quickstart.toml"


def documents(job: Job, name: str) -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(render(job, RECIPES[name]))}


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("name", ["rayjob", "raycluster"])
@pytest.mark.parametrize("config, machine", [(GRPO, GPUS), (QUICKSTART, CPUS)], ids=["gpus", "cpus"])
def test_a_manifest_has_the_fields_that_its_definition_has(name: str, config: Path, machine: Any) -> None:
    found = documents(example(config, machine), name)
    assert set(found) == {"ConfigMap", "RayJob" if name == "rayjob" else "RayCluster"}
    for kind, document in found.items():
        jsonschema.validate(document, KINDS[kind])


def test_a_manifest_with_a_field_that_there_is_not_does_not_pass() -> None:
    job = documents(example(GRPO, GPUS), "rayjob")["RayJob"]
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(job, KINDS["RayJob"])


def test_a_rayjob_has_a_pod_for_each_machine_and_the_launch_finds_its_file() -> None:
    job = example(GRPO, GPUS)
    found = documents(job, "rayjob")
    spec = found["RayJob"]["spec"]
    (machines,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    # 8 ranks of 4 CPUs and 16 workers on the fullest; KubeRay would take what is requested for all that Ray may use
    assert machines["rayStartParams"] == {"num-cpus": "48"}
    assert machines["template"]["spec"]["containers"][0]["resources"]["requests"] == {"cpu": 48}
    assert machines["replicas"] == machines["maxReplicas"] == job.nodes == 2
    assert machines["template"]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert found["ConfigMap"]["data"]["run.toml"].strip() == GRPO.read_text().strip()
    for pod in pods(spec["rayClusterSpec"]):
        names = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} <= names
        assert mounts[str(job.config_file)]["subPath"] == "run.toml"
        assert pod["terminationGracePeriodSeconds"] > job.config.run.stop_timeout_s
    assert str(job.config_file) in spec["entrypoint"] and "placement.kind=ray" in spec["entrypoint"]


def test_a_configuration_without_keys_needs_no_secret() -> None:
    without = example(GRPO, GPUS)
    with_one = dataclasses.replace(without, config=load(GRPO, ["router.api_key=env:ROUTER_KEY"], check=False))
    for job in (without, with_one):
        cluster = documents(job, "raycluster")["RayCluster"]
        jsonschema.validate(cluster, KINDS["RayCluster"])
        assert all(("envFrom" in pod["containers"][0]) == (job is with_one) for pod in pods(cluster["spec"]))
    found = yaml.safe_load(render(with_one, RECIPES["compose"]))["services"]["machine-1"]["environment"]
    assert found["ROUTER_KEY"].startswith("${ROUTER_KEY:?")


@pytest.mark.parametrize("text", ['  # begins with spaces\n[a]\nb = "$HOME ${X} \\" é"\n', "[a]\n\n\n# ends early"])
@pytest.mark.parametrize("name", ["rayjob", "compose"])
def test_the_configuration_arrives_as_it_is(name: str, text: str) -> None:
    job = dataclasses.replace(example(GRPO, GPUS), config_text=text)
    if name == "rayjob":
        arrived = documents(job, name)["ConfigMap"]["data"]["run.toml"]
    else:  # docker compose reads $$ as $
        arrived = yaml.safe_load(render(job, RECIPES[name]))["configs"]["run"]["content"].replace("$$", "$")
    assert arrived.rstrip("\n") == text.rstrip("\n")
    assert tomllib.loads(arrived) == tomllib.loads(text)


def test_a_run_directory_of_any_name_makes_a_name_for_kubernetes() -> None:
    for directory in ("GRPO run_1", "ä" * 80, "-" * 3, "a" * 200):
        job = dataclasses.replace(example(GRPO, GPUS), run_dir=Path("/shared/runs") / directory)
        jsonschema.validate(documents(job, "rayjob")["RayJob"], KINDS["RayJob"])


def test_machines_of_compose_join_the_first_with_one_token_and_one_directory() -> None:
    found = yaml.safe_load(render(example(QUICKSTART, CPUS, 3), RECIPES["compose"]))
    assert list(found["services"]) == ["machine-0", "machine-1", "machine-2"]
    for name, machine in found["services"].items():
        assert machine["hostname"] == name and machine["volumes"] == [f"shared:{SHARED}"]
        assert "RAY_AUTH_TOKEN" in machine["environment"]
        assert ("--head" in machine["command"]) == (name == "machine-0")
        assert ("--address=machine-0:6380" in machine["command"]) == (name != "machine-0")


def test_a_template_that_asks_for_what_there_is_not_is_one_line(tmp_path: Path) -> None:
    mine = tmp_path / "mine.j2"
    for text, said in (("{{ job.nods }}", "nods"), ("{{ job.name }", "line 1"), ("{% include 'x' %}", "x")):
        mine.write_text(text)
        with pytest.raises(ConfigError, match=said) as told:
            render(example(GRPO, GPUS), RECIPES["rayjob"], mine)
        assert "\n" not in str(told.value)
    mine.write_text("{{ job.name }} on {{ job.nodes }}: {{ job.in_words }}")
    assert render(example(GRPO, GPUS), RECIPES["rayjob"], mine).startswith(
        "grpo on 2: miles-async launch /shared/grpo.toml"
    )


def test_the_commands_for_machines_join_one_cluster_and_name_every_port(tmp_path: Path) -> None:
    job = example(QUICKSTART, CPUS, 3)
    text = render(job, RECIPES["ray-start"])
    head, other = [line for line in text.replace("\\\n", "").splitlines() if "ray start" in line]
    assert "--head --node-ip-address=FIRST --port=6380" in head and "--address=FIRST:6380" in other
    assert "of which there are 2" in text
    for flag in job.ray_flags:
        assert flag in head and flag in other
    assert f"RAY_ADDRESS=FIRST:6380 {job.in_words}" in text and f"-- {job.in_words}" in text
