"""The Helm chart, rendered and linted offline, against the schemas of Kubernetes. `make deploy-check`."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from app.settings import Settings
from tests.helpers.cluster import ROOT

helm = pytest.importorskip("helm_python", reason="make deploy-check installs it", exc_type=ImportError)
kubernetes_validate = pytest.importorskip("kubernetes_validate")
pytestmark = pytest.mark.deploy

CHART = ROOT / "deploy/helm/espalier"
KUBERNETES = ("1.29.0", "1.33.0", "1.37.0")
NEEDED: dict[str, Any] = {
    "image": {"api": "registry/espalier-api:1"},
    "secret": {"name": "espalier"},
    "settings": {"artifacts_url": "s3://bucket/espalier"},
    "workers": {"cpu": {"image": "registry/espalier-worker:1"}},
}
ALL = {
    **NEEDED,
    "imagePullSecrets": [{"name": "registry"}],
    "secretEnv": [{"name": "AWS_ACCESS_KEY_ID", "secret": "store", "key": "id"}],
    "secretFiles": [{"name": "signing", "secret": "espalier-signing-keys"}],
    "settings": {"artifacts_url": "s3://b/p", "metrics_tenants": True, "signing_keys": "/etc/espalier/signing/keys"},
    "env": {"AWS_REGION": "eu-west-1", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
    "modelsVolume": {"persistentVolumeClaim": {"claimName": "models"}},
    "workers": {
        "cpu": {"image": "w:1", "settings": {"worker_threads": 2}, "autoscaling": {"enabled": True}},
        "gpu": {"enabled": True, "image": "g:1", "nodeSelector": {"accelerator": "h100"}},
    },
}
VALUES = [pytest.param(NEEDED, id="needed"), pytest.param(ALL, id="all")]


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm.Chart.load(CHART) as chart:
        made = chart.render(values=values, name="prod", namespace="ml")
    documents = [each for name, text in made.items() if name.endswith(".yaml") for each in yaml.safe_load_all(text)]
    return [document for document in documents if document]


def of_kind(values: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in rendered(values) if each["kind"] == kind}


def pods(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in rendered(values)
        if each["kind"] in ("Deployment", "Job")
    }


@pytest.mark.parametrize("values", VALUES)
def test_lints(values: dict[str, Any]) -> None:
    report = helm.lint(CHART, values, strict=True, namespace="ml", kube_version="1.33.0")
    worse = [each for each in report["messages"] if each["severity"] not in ("INFO", 1)]
    assert worse == [], report


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", VALUES)
def test_is_what_kubernetes_takes(values: dict[str, Any], version: str) -> None:
    for document in rendered(values):
        kubernetes_validate.validate(document, version, strict=True)


def test_has_a_deployment_of_each_part() -> None:
    assert set(of_kind(ALL, "Deployment")) == {"prod-api", "prod-reconciler", "prod-worker-cpu", "prod-worker-gpu"}
    assert set(of_kind(NEEDED, "Deployment")) == {"prod-api", "prod-reconciler", "prod-worker-cpu"}
    job = of_kind(ALL, "Job")["prod-migrate"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    # A hook runs before the chart's other objects are there.
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]
    assert set(of_kind(ALL, "PodDisruptionBudget")) == {"prod-api", "prod-worker-cpu", "prod-worker-gpu"}


def test_selectors_meet_their_own_pods_only() -> None:
    for name, deployment in of_kind(ALL, "Deployment").items():
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        others = [d for other, d in of_kind(ALL, "Deployment").items() if other != name]
        for other in others:
            assert not selector.items() <= other["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("values", VALUES)
def test_every_pod_is_confined(values: dict[str, Any]) -> None:
    for name, pod in pods(values).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert {"/tmp", "/var/lib/espalier"} <= written
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_secrets_are_referred_to_and_settings_are_ours() -> None:
    known = {f"ESPALIER_{name.upper()}" for name in Settings.model_fields}
    for pod in pods(ALL).values():
        env = {each["name"]: each for each in pod["containers"][0]["env"]}
        assert {name for name in env if name.startswith("ESPALIER_")} <= known
        for name in ("ESPALIER_DATABASE_URL", "ESPALIER_BROKER_URL", "ESPALIER_SECRET_KEY", "AWS_ACCESS_KEY_ID"):
            assert set(env[name]) == {"name", "valueFrom"}
        assert env["ESPALIER_METRICS_TENANTS"]["value"] == "true"


def test_probes_depend_on_no_process_id_and_liveness_on_no_other_service() -> None:
    for name, pod in pods(ALL).items():
        if name.endswith("migrate"):
            continue
        probe = pod["containers"][0]["livenessProbe"]
        if name.endswith("api"):
            assert probe["httpGet"]["path"] == "/livez"
        else:
            assert probe["exec"]["command"][:2] == ["espalier", "probe"]


def test_workers_scale_with_the_age_of_the_queue() -> None:
    (scaler,) = of_kind(ALL, "HorizontalPodAutoscaler").values()
    assert scaler["spec"]["scaleTargetRef"]["name"] == "prod-worker-cpu"
    assert scaler["spec"]["metrics"][0]["external"]["metric"]["name"] == "espalier_queue_oldest_seconds"
    assert "replicas" not in of_kind(ALL, "Deployment")["prod-worker-cpu"]["spec"]


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("image", "image.api"),
        ("secret", "secret.name"),
        ("settings", "artifacts_url"),
        ("workers", "workers.cpu.image"),
    ],
)
def test_what_is_missing_is_named(missing: str, named: str) -> None:
    with pytest.raises(helm.HelmError, match=named):
        rendered({name: value for name, value in NEEDED.items() if name != missing})


@pytest.mark.parametrize(
    "values",
    [
        {"workerz": {}},
        {"settings": {"secret_key": "s", "artifacts_url": "x"}},
        {"workers": {"cpu": {"devices": "tpu"}}},
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError):
        rendered({**NEEDED, **values})
