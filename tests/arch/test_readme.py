"""What the README says of settings is what the code reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from scheduler_service.settings import Settings as SchedulerSettings
from worker_service.settings import Settings as WorkerSettings

README = Path(__file__).parent.parent.parent / "README.md"


def table(settings: type[BaseSettings]) -> str:
    rows = [_row(name, field) for name, field in settings.model_fields.items()]
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])


def _row(name: str, field: FieldInfo) -> str:
    return f"| `CARILLON_{name.upper()}` | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    if field.is_required() or field.default_factory or default in ("", None) or default == {}:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


@pytest.mark.parametrize("settings", [SchedulerSettings, WorkerSettings], ids=["scheduler", "worker"])
def test_the_readme_has_every_setting_as_it_is(settings: type[BaseSettings]) -> None:
    assert table(settings) in README.read_text(), f"put this into the README:\n{table(settings)}"
