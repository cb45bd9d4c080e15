"""Containers can do no more than they need."""

from __future__ import annotations

import re

import pytest

from tests.deploy.dockerfile import DOCKERFILE, read_stages
from tests.deploy.manifests import TEMPLATE, Resource, compose, compose_containers, resources, workloads

STAGES = read_stages(DOCKERFILE.read_text())
PODS = dict(workloads())


@pytest.mark.parametrize("target", ["scheduler-service", "worker-service", "examples"])
def test_a_target_is_not_root_and_is_told_to_stop_directly(target: str) -> None:
    stage = STAGES[target]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", stage.user)
    assert stage.entrypoint[:2] == ("python", "-m")  # in exec form: no shell stands between it and SIGTERM
    assert stage.stop_signal == "SIGTERM"
    assert stage.environment["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize("pod", list(PODS.values()), ids=list(PODS))
def test_pods_are_restricted(pod: Resource) -> None:
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == STAGES["base"].user
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"mountPath": "/tmp", "name": "tmp"} in container["volumeMounts"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False


def test_compose_services_of_ours_are_restricted() -> None:
    for name in compose_containers():
        service = compose()["services"][name]
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["tmpfs"] == ["/tmp"], name


def test_the_template_of_secrets_has_no_secret() -> None:
    for resource in resources(TEMPLATE):
        for value in resource["stringData"].values():
            assert re.search("PASSWORD|SECRET", value)
