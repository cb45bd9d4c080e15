"""A wrong setting is a sentence that names its variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler_service.settings import SettingsError, read_settings


@pytest.fixture(autouse=True)
def required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARILLON_DATABASE_URL", "postgresql://a@localhost/x")
    monkeypatch.setenv("CARILLON_ENGINE_URL", "postgresql://e@localhost/x")


def test_defaults_are_those_of_the_readme() -> None:
    settings = read_settings()
    assert (settings.port, settings.metrics_port, settings.host) == (7007, 7008, "127.0.0.1")
    assert (settings.lease_seconds, settings.heartbeat_seconds) == (30, 5)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CARILLON_PORT", "seven", "CARILLON_PORT is wrong"),
        ("CARILLON_PORT", "70000", "CARILLON_PORT is wrong"),
        ("CARILLON_DEFAULT_TIME_ZONE", "Europe/Berlim", "CARILLON_DEFAULT_TIME_ZONE is wrong"),
        ("CARILLON_LEASE_SECONDS", "6", "at least three times CARILLON_HEARTBEAT_SECONDS"),
        ("CARILLON_DEVELOPMENT_JWT_SECRET", "short", "CARILLON_DEVELOPMENT_JWT_SECRET is shorter"),
        ("CARILLON_SERVICE_TOKENS", "email-service", "CARILLON_SERVICE_TOKENS: entry 1"),
        (
            "CARILLON_DEVELOPMENT_JWT_SECRET_FILE",
            "/nowhere/at-all",
            "CARILLON_DEVELOPMENT_JWT_SECRET_FILE names /nowhere/at-all",
        ),
        ("CARILLON_LOG_FORMAT", "xml", "CARILLON_LOG_FORMAT is wrong"),
        ("CARILLON_DATABASE_URL", "mysql://a@localhost/x", "CARILLON_DATABASE_URL must begin with postgresql://"),
        ("CARILLON_ENGINE_URL", "postgresql://a@other/x", "name one login"),
    ],
)
def test_a_wrong_value_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=says):
        read_settings()


def test_every_missing_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARILLON_DATABASE_URL")
    monkeypatch.delenv("CARILLON_ENGINE_URL")
    with pytest.raises(SettingsError, match=r"CARILLON_DATABASE_URL is not set(.|\n)*CARILLON_ENGINE_URL is not set"):
        read_settings()


def test_a_secret_may_stand_in_a_file_and_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    (tmp_path / "secret").write_text(secret + "\n")
    monkeypatch.setenv("CARILLON_DEVELOPMENT_JWT_SECRET_FILE", str(tmp_path / "secret"))
    settings = read_settings()
    assert settings.jwt_rules().secret == secret
    assert secret not in repr(settings)
