"""cluster.yaml by Ray's own check, kuberay.yaml by the fields of its API, Grafana by the code's names."""

import json
import re
import shlex

import pytest
import yaml

from cluster.running import ROOT
from pipelines.train.metrics import COUNTERS, GAUGES, TAGS

# fields of ray.io/v1, from the operator's API reference; those of Kubernetes' own objects from its v1
API = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayJobSpec": {
        "entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "backoffLimit",
        "activeDeadlineSeconds", "submissionMode", "submitterConfig", "submitterPodTemplate",
        "rayClusterSpec",
        "clusterSelector", "runtimeEnvYAML", "jobId", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "suspend", "managedBy", "deletionStrategy", "metadata",
    },
    "RayClusterSpec": {
        "rayVersion", "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "headGroupSpec",
        "workerGroupSpecs", "gcsFaultToleranceOptions", "headServiceAnnotations", "managedBy", "suspend",
    },
    "AutoscalerOptions": {
        "version", "idleTimeoutSeconds", "upscalingMode", "resources", "image", "imagePullPolicy", "env",
        "envFrom", "volumeMounts", "securityContext",
    },
    "HeadGroupSpec": {"template", "rayStartParams", "headService", "enableIngress", "serviceType"},
    "WorkerGroupSpec": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds", "suspend",
        "rayStartParams", "scaleStrategy", "template",
    },
    "PodSpec": {"containers", "affinity", "tolerations", "nodeSelector", "volumes", "serviceAccountName"},
    "Container": {"name", "image", "env", "envFrom", "ports", "resources", "volumeMounts"},
}  # fmt: skip


def known(what: str, fields: dict) -> dict:
    assert set(fields) <= API[what], f"{what} has no {set(fields) - API[what]}"
    return fields


@pytest.fixture(scope="module")
def job() -> dict:
    return yaml.safe_load((ROOT / "deploy/kuberay.yaml").read_text())


@pytest.fixture(scope="module")
def aws() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_takes_cluster_yaml(aws):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(aws))
    with pytest.raises(Exception, match="was unexpected"):
        validate_config(prepare_config({**aws, "workers": 1}))  # the check does look


def test_what_the_nodes_of_cluster_yaml_are(aws):
    import ray

    types = aws["available_node_types"]
    assert aws["head_node_type"] == "head"
    assert types["head"]["resources"]["CPU"] == 0  # no task may take the head down
    spot = {n for n, t in types.items() if "InstanceMarketOptions" in t["node_config"]}
    assert spot == {"data", "gpu_spot"}
    spare, first = types["gpu_on_demand"], types["gpu_spot"]
    assert first["priority"] > spare["priority"]
    assert first["resources"] == spare["resources"]
    assert sum(t.get("max_workers", 0) for t in types.values()) == aws["max_workers"]
    assert all(t["node_config"]["IamInstanceProfile"] for t in types.values())
    # not Ray's own, of Ubuntu 18.04, whose driver is too old for torch's CUDA
    assert {t["node_config"]["ImageId"].split("/")[-3] for t in types.values()} == {
        "base-oss-nvidia-driver-gpu-ubuntu-22.04"
    }
    assert types["gpu_node"]["resources"]["GPU"] == 4
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in aws[commands][-1]
        assert "TADVAE_STORAGE=s3://" in aws[commands][-1]
    for image in ("head_image", "worker_image"):
        assert aws["docker"][image].startswith(f"rayproject/ray:{ray.__version__}-py3")
    for local in aws["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists()


def test_kuberay_fields(job):
    known("RayJob", job)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = known("RayJobSpec", job["spec"])
    cluster = known("RayClusterSpec", spec["rayClusterSpec"])
    known("AutoscalerOptions", cluster["autoscalerOptions"])
    assert cluster["authOptions"] == {"mode": "token"}
    known("HeadGroupSpec", cluster["headGroupSpec"])
    groups = [known("WorkerGroupSpec", group) for group in cluster["workerGroupSpecs"]]
    for group in groups:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *groups):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = known("PodSpec", group["template"]["spec"])
        for container in pod["containers"]:
            known("Container", container)
            resources = container["resources"]
            assert resources["requests"] == resources["limits"]
    import ray

    assert cluster["rayVersion"] == ray.__version__
    assert f"rayproject/ray:{ray.__version__}-" in (ROOT / "deploy/Dockerfile").read_text()


def test_the_entry_point_of_kuberay_is_a_command_of_this_program(job):
    from typer.main import get_command

    from pipelines.cli.main import app

    python, dash_m, module, name, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, dash_m, module, name) == ("python", "-m", "pipelines", "train")
    command = get_command(app).commands["train"]
    context = command.make_context("train", words)
    most = int(context.params["workers"].partition(":")[2])
    gpus = [
        g["maxReplicas"] for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == "gpu"
    ]
    assert [most] == gpus


def test_the_dashboard_draws_what_the_code_emits():
    text = (ROOT / "deploy/grafana.json").read_text()
    board = json.loads(text)
    drawn = set(re.findall(r"ray_(tadvae_\w+)", text))
    assert drawn == {*GAUGES, *COUNTERS}
    labels = set(re.findall(r"\{\{(\w+)\}\}", text)) | set(re.findall(r"\((\w+)\) \(", text)) | {"run"}
    assert labels <= set(TAGS)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["targets"]
