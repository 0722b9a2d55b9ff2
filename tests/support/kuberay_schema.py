"""What KubeRay's custom resources may hold, as far as our manifests use it, in JSON Schema.

After ``ray-operator/apis/ray/v1`` of ray-project/kuberay (fields, types, what is required, enumerations), ``authOptions`` as of
1.5.1, and the pod of Kubernetes' core/v1. A field that is not here is refused, as the API server's strict validation does.
"""

from __future__ import annotations

from typing import Any

TEXT, NUMBER, COUNT, FLAG = (
    {"type": "string"},
    {"type": "number"},
    {"type": "integer", "minimum": 0},
    {"type": "boolean"},
)
DNS_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY = {"anyOf": [COUNT, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?$"}]}


def table(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def mapped(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": value}


METADATA = table(("name",), name=DNS_NAME, namespace=DNS_NAME, labels=mapped(TEXT), annotations=mapped(TEXT))

CONTAINER = table(
    ("name", "image"),
    name=DNS_NAME,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    workingDir=TEXT,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(table(("name",), name=TEXT, value=TEXT, valueFrom=mapped({}))),
    envFrom=listed(table((), secretRef=table(("name",), name=DNS_NAME, optional=FLAG), prefix=TEXT)),
    ports=listed(table(("containerPort",), containerPort=COUNT, name=TEXT, protocol=TEXT)),
    resources=table((), requests=mapped(QUANTITY), limits=mapped(QUANTITY)),
    volumeMounts=listed(table(("name", "mountPath"), name=DNS_NAME, mountPath=TEXT, subPath=TEXT, readOnly=FLAG)),
)

VOLUME = table(
    ("name",),
    name=DNS_NAME,
    persistentVolumeClaim=table(("claimName",), claimName=DNS_NAME, readOnly=FLAG),
    configMap=table((), name=DNS_NAME, optional=FLAG),
    emptyDir=table((), medium={"enum": ["", "Memory", "HugePages"]}, sizeLimit=QUANTITY),
)

POD_TEMPLATE = table(
    ("spec",),
    metadata=table((), labels=mapped(TEXT), annotations=mapped(TEXT)),
    spec=table(
        ("containers",),
        containers={**listed(CONTAINER), "minItems": 1},
        volumes=listed(VOLUME),
        terminationGracePeriodSeconds=COUNT,
        nodeSelector=mapped(TEXT),
        restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
    ),
)

RAY_CLUSTER_SPEC = table(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=table((), mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=FLAG,
    suspend=FLAG,
    headServiceAnnotations=mapped(TEXT),
    headGroupSpec=table(
        ("rayStartParams", "template"),
        rayStartParams=mapped(TEXT),
        template=POD_TEMPLATE,
        serviceType=TEXT,
        enableIngress=FLAG,
    ),
    workerGroupSpecs=listed(
        table(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            rayStartParams=mapped(TEXT),
            template=POD_TEMPLATE,
        )
    ),
)

RAY_JOB_SPEC = table(
    ("entrypoint", "rayClusterSpec"),
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=RAY_CLUSTER_SPEC,
    metadata=mapped(TEXT),
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=TEXT,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)


def resource(api_version: str, kind: str, name_chars: int, **rest: Any) -> dict[str, Any]:
    name = table(("name",), **{**METADATA["properties"], "name": {**DNS_NAME, "maxLength": name_chars}})
    fixed = {"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": name}
    return table((*fixed, *rest), **fixed, **rest)


# the operator refuses names of RayJobs above 47 characters and of RayClusters above 63 less what it appends
KINDS = {
    "ConfigMap": resource("v1", "ConfigMap", 63, data=mapped(TEXT)),
    "RayJob": resource("ray.io/v1", "RayJob", 47, spec=RAY_JOB_SPEC),
    "RayCluster": resource("ray.io/v1", "RayCluster", 50, spec=RAY_CLUSTER_SPEC),
}
