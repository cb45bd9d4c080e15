"""What tests of containers share: the images' files, and a PostgreSQL server that no role of ours was made on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from local_stack.postgres import EmbeddedPostgres
from tests.deploy.dockerfile import DOCKERFILE, read_stages
from tests.deploy.image import Image, build


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Image]:
    """Each target by its name."""
    stages = read_stages(DOCKERFILE.read_text())
    folder = tmp_path_factory.mktemp("images")
    return {name: build(stages, name, folder) for name in ("scheduler-service", "worker-service", "examples")}


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("own") / "postgres")
    server.start()
    server.create_database("carillon")
    yield server
    server.remove()
