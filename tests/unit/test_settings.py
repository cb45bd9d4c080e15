"""A wrong setting is a sentence that names its variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler_service.settings import SettingsError, read_database_settings, read_settings

SECRET = "0123456789abcdef0123456789abcdef"


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
            "CARILLON_SERVICE_TOKENS",
            "a=t.0123456789abcdef,b=t.fedcba9876543210",
            "CARILLON_SERVICE_TOKENS: entry 2 has the id of another entry",
        ),
        (
            "CARILLON_RETENTION_DAYS",
            "29",
            "CARILLON_RETENTION_DAYS is wrong: 29 days are too few: give at least 30, or 0",
        ),
        ("CARILLON_RETENTION_DAYS", "-1", "CARILLON_RETENTION_DAYS is wrong"),
        ("CARILLON_TRIGGERS_PER_SECOND", "0", "CARILLON_TRIGGERS_PER_SECOND is wrong"),
        ("CARILLON_CHANGES_PER_SECOND", "0", "CARILLON_CHANGES_PER_SECOND is wrong"),
        ("CARILLON_DEVELOPMENT_JWT_SECRET", " " * 40, "CARILLON_DEVELOPMENT_JWT_SECRET is shorter .* or repeats few"),
        (
            "CARILLON_DEVELOPMENT_JWT_SECRET",
            "abcde" * 8,
            "CARILLON_DEVELOPMENT_JWT_SECRET is shorter .* or repeats few",
        ),
        ("CARILLON_JWT_ISSUER", "", "CARILLON_JWT_ISSUER is wrong: it is empty"),
        ("CARILLON_JWT_ISSUER", "https://a.example, https://b.example", "CARILLON_JWT_ISSUER has a comma; one issuer"),
        ("CARILLON_JWT_AUDIENCE", "", "CARILLON_JWT_AUDIENCE is wrong: it is empty"),
        ("CARILLON_JWT_AUDIENCE", "  ", "CARILLON_JWT_AUDIENCE is wrong: it is empty, or has blanks"),
        ("CARILLON_JWT_ADMIN_ROLE", "", "CARILLON_JWT_ADMIN_ROLE is wrong: it is empty"),
        ("CARILLON_JWT_ADMIN_ROLE", "admin ", "CARILLON_JWT_ADMIN_ROLE is wrong: it is empty, or has blanks"),
        ("CARILLON_JWT_ADMIN_ROLE", "ad\u200bmin", "CARILLON_JWT_ADMIN_ROLE is wrong: it is empty, or has blanks"),
        *(
            ("CARILLON_JWT_ROLE_CLAIM", claim, "CARILLON_JWT_ROLE_CLAIM is wrong: `")
            for claim in ("sub", "aud", "jti.x")
        ),
        *(("CARILLON_JWT_TENANT_CLAIM", claim, "CARILLON_JWT_TENANT_CLAIM is wrong: `") for claim in ("iss", "aud")),
        *(
            (f"CARILLON_JWT_{what}_CLAIM", claim, f"CARILLON_JWT_{what}_CLAIM is wrong: people write this claim")
            for what in ("ROLE", "TENANT")
            for claim in ("unsafe_metadata.role", "user.unsafe_metadata", "user_metadata.role", "nickname", "address.x")
        ),
        *(
            (f"CARILLON_JWT_{what}_CLAIM", claim, f"CARILLON_JWT_{what}_CLAIM is wrong: .* in one organization")
            for what in ("ROLE", "TENANT")
            for claim in ("org_role", "o.rol", "org_permissions", "o.per.x")
        ),
        ("CARILLON_JWT_ROLE_CLAIM", "tenant", "CARILLON_JWT_ROLE_CLAIM and CARILLON_JWT_TENANT_CLAIM name one claim"),
        ("CARILLON_JWT_ROLE_CLAIM", "metadata..role", "CARILLON_JWT_ROLE_CLAIM is wrong: it has an empty name"),
        ("CARILLON_JWT_TENANT_CLAIM", "", "CARILLON_JWT_TENANT_CLAIM is wrong: it has an empty name"),
        ("CARILLON_JWT_ROLES_FROM", "anywhere", "CARILLON_JWT_ROLES_FROM is wrong"),
        ("CARILLON_JWT_MAX_LIFETIME_SECONDS", "0", "CARILLON_JWT_MAX_LIFETIME_SECONDS is wrong"),
        (
            "CARILLON_JWKS_URL",
            "http://login.example.com/jwks",
            "CARILLON_JWKS_URL is wrong: it must begin with https://",
        ),
        (
            "CARILLON_JWKS_URL",
            "https://a:b@login.example.com/",
            "CARILLON_JWKS_URL is wrong: it is no URL, or one with",
        ),
        ("CARILLON_JWKS_URL", "https://login.example.com/jwks", "CARILLON_JWKS_URL needs CARILLON_JWT_ISSUER"),
        (
            "CARILLON_DEVELOPMENT_JWT_SECRET_FILE",
            "/nowhere/at-all",
            "CARILLON_DEVELOPMENT_JWT_SECRET_FILE names /nowhere/at-all",
        ),
        ("CARILLON_LOG_FORMAT", "xml", "CARILLON_LOG_FORMAT is wrong"),
        ("CARILLON_DATABASE_URL", "mysql://a@localhost/x", "CARILLON_DATABASE_URL must begin with postgresql://"),
        ("CARILLON_ENGINE_URL", "postgresql://a@other/x", "name one login"),
        ("CARILLON_ENGINE_URL", "postgresql://e@other:port/x", "CARILLON_ENGINE_URL is no URL of PostgreSQL"),
        ("CARILLON_LISTEN_URL", "postgresql://e@other/x?speed=1", "CARILLON_LISTEN_URL is no URL of PostgreSQL"),
        ("CARILLON_MIGRATION_URL", "postgresql://e:a%zz@other/x", "CARILLON_MIGRATION_URL is no URL of PostgreSQL"),
    ],
)
def test_a_wrong_value_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=says):
        read_settings()


@pytest.fixture
def key_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARILLON_JWKS_URL", "https://login.example.com/jwks")
    monkeypatch.setenv("CARILLON_JWT_ISSUER", "https://login.example.com")


@pytest.mark.usefixtures("key_set")
def test_a_key_set_comes_with_its_issuer() -> None:
    rules = read_settings().jwt_rules()
    assert (rules.issuer, rules.secret) == ("https://login.example.com", "")


@pytest.mark.parametrize(
    ("role", "tenant"), [("realm_access.roles", "sub"), ("metadata.role", "o.id"), ("o.x", "o.id")]
)
def test_claims_that_the_issuer_writes_may_decide(monkeypatch: pytest.MonkeyPatch, role: str, tenant: str) -> None:
    monkeypatch.setenv("CARILLON_JWT_ROLE_CLAIM", role)
    monkeypatch.setenv("CARILLON_JWT_TENANT_CLAIM", tenant)
    rules = read_settings().jwt_rules()
    assert (rules.role_claim, rules.tenant_claim) == (role, tenant)


def test_one_claim_is_one_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARILLON_JWT_ROLE_CLAIM", r"roles\.example/x")
    monkeypatch.setenv("CARILLON_JWT_TENANT_CLAIM", r"roles\.example/x")
    with pytest.raises(SettingsError, match="name one claim"):
        read_settings()


def test_the_development_secret_stays_on_this_machine_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARILLON_DEVELOPMENT_JWT_SECRET", SECRET)
    read_settings()
    monkeypatch.setenv("CARILLON_HOST", "0.0.0.0")
    monkeypatch.setenv("CARILLON_PLAINTEXT", "true")
    with pytest.raises(SettingsError, match=r"is 0\.0\.0\.0, which .* CARILLON_ALLOW_DEVELOPMENT_JWTS=true"):
        read_settings()
    monkeypatch.setenv("CARILLON_ALLOW_DEVELOPMENT_JWTS", "true")
    assert read_settings().allow_development_jwts


@pytest.mark.usefixtures("key_set")
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CARILLON_DEVELOPMENT_JWT_SECRET", SECRET, "CARILLON_JWKS_URL and CARILLON_DEVELOPMENT_JWT_SECRET are both"),
        ("CARILLON_JWKS_MAX_AGE_SECONDS", "299", "must be at least CARILLON_JWKS_REFRESH_SECONDS"),
    ],
)
def test_what_does_not_go_with_a_key_set(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=says):
        read_settings()


def test_commands_need_the_database_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARILLON_ENGINE_URL")
    monkeypatch.setenv("CARILLON_PORT", "seven")
    assert read_database_settings().database_url.get_secret_value() == "postgresql://a@localhost/x"
    monkeypatch.delenv("CARILLON_DATABASE_URL")
    with pytest.raises(SettingsError, match="CARILLON_DATABASE_URL is not set"):
        read_database_settings()


def test_every_missing_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARILLON_DATABASE_URL")
    monkeypatch.delenv("CARILLON_ENGINE_URL")
    with pytest.raises(SettingsError, match=r"CARILLON_DATABASE_URL is not set(.|\n)*CARILLON_ENGINE_URL is not set"):
        read_settings()


def test_a_secret_may_stand_in_a_file_and_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    monkeypatch.setenv("CARILLON_DEVELOPMENT_JWT_SECRET_FILE", str(tmp_path / "secret"))
    settings = read_settings()
    assert settings.jwt_rules().secret == SECRET
    assert SECRET not in repr(settings)
