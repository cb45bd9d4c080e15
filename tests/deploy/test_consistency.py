"""What the Dockerfile, the compose file and the manifests say fits together, and fits the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

import pytest
import tomllib
from pydantic_settings import BaseSettings

from local_stack.compose_secrets import write_secrets
from scheduler_service.settings import FROM_FILES
from scheduler_service.settings import Settings as SchedulerSettings
from tests.deploy.dockerfile import DOCKERFILE, ROOT, read_stages
from tests.deploy.manifests import (
    TEMPLATE,
    Container,
    Resource,
    compose,
    compose_containers,
    kubernetes_containers,
    kustomization,
    resources,
)
from worker_service.settings import Settings as WorkerSettings

STAGES = read_stages(DOCKERFILE.read_text())
CONTAINERS = [*compose_containers().values(), *kubernetes_containers().values()]
# Above what is drained: until the last results are committed and acknowledged, and the processes are gone.
FLUSH_SECONDS = 10

SCHEDULER = {f"CARILLON_{name.upper()}" for name in SchedulerSettings.model_fields}
SCHEDULER_FILES = {f"CARILLON_{name.upper()}_FILE" for name in FROM_FILES}
WORKER = {f"CARILLON_{name.upper()}" for name in WorkerSettings.model_fields}
READ_BY = {
    "scheduler-service": SCHEDULER | SCHEDULER_FILES,
    "worker-service": WORKER,
    "examples": {
        "CARILLON_TARGET",
        "CARILLON_PLAINTEXT",
        "CARILLON_SERVICE_TOKEN",
        "CARILLON_SERVICE_TOKEN_FILE",
        "CARILLON_SIGNING_KEYS_FILE",
    },
}

every_container = pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)


def pyproject() -> Resource:
    project: Resource = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def environment_of(container: Container) -> dict[str, str]:
    return STAGES[container.target].environment | container.environment


@every_container
def test_every_variable_is_one_that_the_process_reads(container: Container) -> None:
    named = {name for name in environment_of(container) if name.startswith("CARILLON_")}
    assert named <= READ_BY[container.target]


@every_container
def test_every_variable_of_an_example_is_one_that_it_reads(container: Container) -> None:
    others = {name for name in container.environment if not name.startswith("CARILLON_")}
    code = "".join(file.read_text() for file in (ROOT / "examples").glob("*_s*/*.py"))
    assert {name for name in others if f'"{name}"' not in code} == set()


@every_container
def test_every_file_that_is_named_is_mounted_and_every_mounted_one_is_named(container: Container) -> None:
    named = {value for name, value in container.environment.items() if name.endswith("_FILE") and "SINK" not in name}
    # The migration Job shares its ConfigMap with the scheduler, and so its files.
    assert named | _named_in_urls(container) == set(container.mounted)


def _named_in_urls(container: Container) -> set[str]:
    """The authorities' certificates that database URLs of the template name."""
    values = {
        f"{each['metadata']['name']}/{key}": value
        for each in resources(TEMPLATE)
        for key, value in each["stringData"].items()
    }
    urls = (values.get(secret, "") for secret in container.mounted.values())
    return {found for url in urls for found in re.findall(r"sslrootcert=([^&\s]+)", url)}


@every_container
def test_a_container_may_take_longer_to_stop_than_its_drain(container: Container) -> None:
    settings: dict[str, type[BaseSettings]] = {"scheduler-service": SchedulerSettings, "worker-service": WorkerSettings}
    if container.target not in settings or "migrate" in container.arguments:
        return
    default = settings[container.target].model_fields["drain_seconds"].default
    drain = float(environment_of(container).get("CARILLON_DRAIN_SECONDS", default))
    assert container.stop_seconds >= container.pre_stop_seconds + drain + FLUSH_SECONDS


@every_container
def test_every_image_is_a_target_of_the_dockerfile_at_this_version(container: Container) -> None:
    assert container.image == f"carillon-{container.target}:{pyproject()['version']}"
    labels = STAGES[container.target].labels
    assert container.image == f"{labels['org.opencontainers.image.title']}:{labels['org.opencontainers.image.version']}"


def test_compose_builds_the_target_that_the_image_is_named_for() -> None:
    built = {name: service["build"]["target"] for name, service in compose()["services"].items() if "build" in service}
    assert built == {name: container.target for name, container in compose_containers().items()}


def test_kustomize_knows_every_image() -> None:
    images = {f"{image['name']}:{image['newTag']}" for image in kustomization()["images"]}
    assert images == {container.image for container in kubernetes_containers().values()}


def test_stages_agree_on_one_python_that_the_services_support() -> None:
    images = {stage.parent for stage in STAGES.values()} - set(STAGES)
    assert len(images) == 1
    minor = re.fullmatch(r"python:3\.(\d+)-slim", images.pop())
    oldest = re.fullmatch(r">=3\.(\d+)", pyproject()["requires-python"])
    assert minor
    assert oldest
    assert int(minor[1]) >= int(oldest[1])


def test_images_install_exactly_what_was_tested() -> None:
    pins = {
        name: set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements" / f"{name}.lock").read_text(), re.MULTILINE))
        for name in ("dev", "services", "examples")
    }
    assert pins["services"] < pins["examples"] < pins["dev"]
    assert not {pin for pin in pins["examples"] if pin.startswith(("pytest", "mypy", "pixeltable", "buf-bin", "uv="))}
    assert "://" not in (ROOT / "requirements" / "services.lock").read_text()


def numbers(found: Resource | list[Resource], *keys: str) -> Iterator[int]:
    """Every number under one of the keys, however deep."""
    if isinstance(found, list):
        yield from chain.from_iterable(numbers(each, *keys) for each in found)
    elif isinstance(found, dict):
        yield from (value for key, value in found.items() if key in keys and isinstance(value, int))
        yield from chain.from_iterable(numbers(value, *keys) for value in found.values())


def test_ports_are_those_that_the_images_expose_and_the_settings_say() -> None:
    scheduler, worker = STAGES["scheduler-service"], STAGES["worker-service"]
    assert scheduler.exposed == {
        SchedulerSettings.model_fields["port"].default,
        SchedulerSettings.model_fields["metrics_port"].default,
    }
    assert worker.exposed == {WorkerSettings.model_fields["worker_port"].default}
    for container in CONTAINERS:
        ports = {int(value) for name, value in container.environment.items() if re.match(r"CARILLON_.*PORT$", name)}
        assert ports in (set(), STAGES[container.target].exposed)
    assert f"http://127.0.0.1:{SchedulerSettings.model_fields['metrics_port'].default}/readyz" in scheduler.health
    assert f"http://127.0.0.1:{WorkerSettings.model_fields['worker_port'].default}/readyz" in worker.health


def test_pods_services_and_policies_speak_of_those_ports() -> None:
    by_kind = {(each["kind"], each["metadata"]["name"]): each for each in resources()}
    for name in ("scheduler-service", "worker-service"):
        pod = by_kind["Deployment", name]["spec"]["template"]["spec"]
        assert set(numbers(pod, "containerPort")) == STAGES[name].exposed
        assert set(numbers(pod, "port")) <= STAGES[name].exposed
        assert set(numbers(by_kind["NetworkPolicy", name]["spec"]["ingress"], "port")) == STAGES[name].exposed
    for (kind, name), resource in by_kind.items():
        if kind == "Service":
            assert set(numbers(resource["spec"]["ports"], "port")) == {7007}, name


def test_targets_are_services_that_there_are() -> None:
    in_kubernetes = {each["metadata"]["name"] for each in resources() if each["kind"] == "Service"}
    for containers, services in (
        (compose_containers(), set(compose()["services"])),
        (kubernetes_containers(), in_kubernetes),
    ):
        environments = [each.environment for each in containers.values()]
        targets = {each["CARILLON_TARGET"] for each in environments if "CARILLON_TARGET" in each}
        assert targets
        assert {target.removesuffix(":7007") for target in targets} <= services


def test_compose_secrets_are_written_for_every_one_that_is_mounted(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("compose") / "secrets"
    write_secrets(folder)
    before = {file.name: file.read_text() for file in folder.iterdir()}
    write_secrets(folder)
    assert {
        file.name: file.read_text() for file in folder.iterdir() if file.name != "admin_jwt"
    }.items() <= before.items()
    declared = {name: secret["file"] for name, secret in compose()["secrets"].items()}
    assert declared == {name: f"./secrets/{name}" for name in declared}
    assert set(declared) <= set(before)
    assert {name for service in compose()["services"].values() for name in service.get("secrets", ())} == set(declared)
    assert "/secrets/" in (ROOT / ".gitignore").read_text().split()


def test_each_replica_of_compose_gets_a_port_of_this_machine() -> None:
    service = compose()["services"]["scheduler-service"]
    [published] = service["ports"]
    first, last = re.fullmatch(r"127\.0\.0\.1:(\d+)-(\d+):7007", published).groups()  # type: ignore[union-attr]  # or it fails here
    assert int(last) - int(first) + 1 == service["deploy"]["replicas"] == 2


def test_disruption_budgets_and_the_scaler_are_of_workloads_that_there_are() -> None:
    by_kind = {(each["kind"], each["metadata"]["name"]): each for each in resources()}
    deployments = {name for kind, name in by_kind if kind == "Deployment"}
    assert {name for kind, name in by_kind if kind == "PodDisruptionBudget"} == deployments
    for (kind, name), resource in by_kind.items():
        if kind in ("PodDisruptionBudget", "Deployment"):
            assert resource["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}
    scaler = by_kind["HorizontalPodAutoscaler", "worker-service"]["spec"]
    assert scaler["scaleTargetRef"]["name"] in deployments
    assert scaler["minReplicas"] == by_kind["Deployment", "scheduler-service"]["spec"]["replicas"] == 2
    assert "replicas" not in by_kind["Deployment", "worker-service"]["spec"]  # or each apply would undo the scaler's
