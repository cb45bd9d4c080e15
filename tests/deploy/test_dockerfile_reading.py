"""The readers that the other tests here rest on."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from tests.deploy.dockerfile import Copy, read_stages
from tests.deploy.image import is_ignored


def test_a_stage_has_what_it_inherits_and_its_own() -> None:
    stages = read_stages(
        "FROM python:3.11-slim AS base\n"
        "ENV A=1 \\\n    B='two words'\n"
        "# ENV A=3\n"
        "USER 10001:10001\n"
        "FROM base AS service\n"
        "COPY --from=base /a/ /b/\n"
        "ENV A=2\n"
        'HEALTHCHECK --interval=10s CMD ["python", "-V"]\n'
    )
    assert stages["base"].environment == {"A": "1", "B": "two words"}
    service = stages["service"]
    assert (service.parent, service.user, service.environment["A"]) == ("base", "10001:10001", "2")
    assert service.steps == (Copy("base", ("/a/",), "/b/"),)
    assert service.health == ("python", "-V")


def test_the_shell_form_is_refused() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        read_stages("FROM python AS x\nENTRYPOINT python -m scheduler_service\n")


@pytest.mark.parametrize("path", ["README.md", "secrets/jwt_secret", ".git/config", "operations/__pycache__/a.pyc"])
def test_what_no_image_needs_stays_out_of_the_context(path: str) -> None:
    assert is_ignored(PurePosixPath(path))


@pytest.mark.parametrize("path", ["migrations/alembic/env.py", "requirements/services.lock", "operations/probe.py"])
def test_what_images_need_is_in_the_context(path: str) -> None:
    assert not is_ignored(PurePosixPath(path))
