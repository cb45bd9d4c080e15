"""What there is to deploy with is valid by the validators of each format, and each of them would say if it were not."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest

from tests.deploy.dockerfile import DOCKERFILE
from tests.deploy.manifests import COMPOSE, KUBERNETES, TEMPLATE, Resource, kustomization, kustomized, resources

KUBERNETES_VERSIONS = ("1.34", "1.37")
ALL = sorted(file for file in KUBERNETES.glob("*.yaml") if file.name != "kustomization.yaml")


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / name)
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    return tool("hadolint", "--no-color", "--failure-threshold", "style", str(file))


def check_compose(file: Path) -> subprocess.CompletedProcess[str]:
    return tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(file))


def validate(resource: Resource, version: str = KUBERNETES_VERSIONS[-1]) -> None:
    """Errors: ValidationError; SchemaNotFoundError for a kind that is not Kubernetes' own."""
    kubernetes_validate.validate(resource, version, strict=True)


def planted(tmp_path: Path, file: Path, right: str, wrong: str) -> Path:
    text = file.read_text()
    assert right in text
    mistaken = tmp_path / file.name
    mistaken.write_text(text.replace(right, wrong, 1))
    return mistaken


def test_the_dockerfile_is_valid() -> None:
    done = hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("FROM python:3.11-slim AS build", "FROM python AS build", "DL3006"),
        ("RUN groupadd", "RUN cd /tmp && groupadd", "DL3003"),
        ('ENTRYPOINT ["python", "-m", "worker_service"]', "ENTRYPOINT python -m worker_service", "DL3025"),
        ("WORKDIR /app", "WORKDIR app", "DL3000"),
    ],
)
def test_a_mistake_in_the_dockerfile_is_found(tmp_path: Path, right: str, wrong: str, rule: str) -> None:
    done = hadolint(planted(tmp_path, DOCKERFILE, right, wrong))
    assert done.returncode == 1
    assert rule in done.stdout


def test_the_compose_file_is_valid() -> None:
    done = check_compose(COMPOSE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("replicas: 2", "replicas: [2]"),
        ("condition: service_healthy", "condition: service_well"),
        ("stop_grace_period: 40s", "stop_grace: 40s"),
    ],
)
def test_a_mistake_in_the_compose_file_is_found(tmp_path: Path, right: str, wrong: str) -> None:
    done = check_compose(planted(tmp_path, COMPOSE, right, wrong))
    assert done.returncode == 1
    assert "Schema validation errors" in done.stdout


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_a_manifest_is_valid(file: Path, version: str) -> None:
    found = resources(file)
    assert found
    for resource in found:
        validate(resource, version)


def _misspelt_probe(scheduler: Resource) -> None:
    [container] = scheduler["spec"]["template"]["spec"]["containers"]
    container["readinesProbe"] = container.pop("readinessProbe")


def _probe_without_port(scheduler: Resource) -> None:
    [container] = scheduler["spec"]["template"]["spec"]["containers"]
    del container["readinessProbe"]["httpGet"]["port"]


def _wrong_kind(scheduler: Resource) -> None:
    scheduler["kind"] = "Deploymint"


@pytest.mark.parametrize("mistake", [_misspelt_probe, _probe_without_port, _wrong_kind])
def test_a_mistake_in_a_manifest_is_found(mistake: Callable[[Resource], None]) -> None:
    scheduler = copy.deepcopy(resources(KUBERNETES / "scheduler.yaml")[0])
    validate(scheduler)
    mistake(scheduler)
    with pytest.raises((kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError)):
        validate(scheduler)


def test_kustomize_takes_every_manifest_but_the_template() -> None:
    assert sorted(kustomized()) == [file for file in ALL if file != TEMPLATE]
    assert {resource["metadata"].get("namespace", "carillon") for resource in resources(*ALL)} == {
        kustomization()["namespace"]
    }
