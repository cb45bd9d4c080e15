"""docker-compose.yml and deploy/kubernetes, read into one form: the containers that they ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dockerfile import ROOT

COMPOSE = ROOT / "docker-compose.yml"
KUBERNETES = ROOT / "deploy" / "kubernetes"
TEMPLATE = KUBERNETES / "secrets.example.yaml"

Resource = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """One container of ours. `mounted`: what stands in each file that it is given, by the secret's name and key."""

    name: str
    image: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    mounted: dict[str, str]
    stop_seconds: float
    pre_stop_seconds: float = 0

    @property
    def target(self) -> str:
        """The target of the Dockerfile that its image is built from."""
        return self.image.partition(":")[0].removeprefix("carillon-")


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return document


def compose_containers() -> dict[str, Container]:
    return {
        name: Container(
            name=name,
            image=service["image"],
            arguments=tuple(service.get("command", ())),
            environment=service["environment"],
            mounted={f"/run/secrets/{secret}": secret for secret in service.get("secrets", ())},
            stop_seconds=_seconds(service["stop_grace_period"]),
        )
        for name, service in compose()["services"].items()
        if "build" in service
    }


def resources(*files: Path) -> list[Resource]:
    """Every resource of the files; of those that kustomization.yaml names if none is given."""
    return [resource for file in files or kustomized() for resource in yaml.safe_load_all(file.read_text())]


def kustomization() -> Resource:
    document: Resource = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return document


def kustomized() -> list[Path]:
    return [KUBERNETES / name for name in kustomization()["resources"]]


def workloads() -> Iterator[tuple[str, Resource]]:
    """The name and the pod's specification of each Deployment and Job."""
    for resource in resources():
        if resource["kind"] in ("Deployment", "Job"):
            yield resource["metadata"]["name"], resource["spec"]["template"]["spec"]


def kubernetes_containers() -> dict[str, Container]:
    return {name: _container(name, pod) for name, pod in workloads()}


def _container(name: str, pod: Resource) -> Container:
    [container] = pod["containers"]
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    return Container(
        name=name,
        image=container["image"],
        arguments=tuple(container.get("args", ())),
        environment=_environment(name, container),
        mounted=dict(_mounted(pod, container)),
        stop_seconds=pod.get("terminationGracePeriodSeconds", 30),
        pre_stop_seconds=sleep,
    )


def _environment(pod: str, container: Resource) -> dict[str, str]:
    maps = {each["metadata"]["name"]: each["data"] for each in resources() if each["kind"] == "ConfigMap"}
    from_maps = (maps[source["configMapRef"]["name"]] for source in container.get("envFrom", ()))
    environment = {name: value for data in from_maps for name, value in data.items()}
    fields = {"metadata.name": f"{pod}-7d4b9"}
    for entry in container.get("env", ()):
        by_field = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        environment[entry["name"]] = fields[by_field] if by_field else entry["value"]
    return environment


def _mounted(pod: Resource, container: Resource) -> Iterator[tuple[str, str]]:
    secrets = {each["metadata"]["name"]: each["stringData"] for each in resources(TEMPLATE)}
    sources = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    for mount in container["volumeMounts"]:
        if (source := sources.get(mount["name"])) is not None:
            secret = source["secretName"]
            files = {item["path"]: item["key"] for item in source.get("items", ())} or {
                key: key for key in secrets[secret]
            }
            for path, key in files.items():
                yield f"{mount['mountPath']}/{path}", f"{secret}/{key}"


def _seconds(text: str) -> float:
    """A duration as compose writes it: 40s, 1m30s."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", text))
