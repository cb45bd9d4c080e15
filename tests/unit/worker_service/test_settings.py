"""Settings: their defaults, and the sentence for each wrong one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.signed import KEY
from worker_service import settings
from worker_service.settings import SettingsError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for variable in [name for name in os.environ if name.startswith("CARILLON_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("CARILLON_WORKER_TOKEN", "id.secret")
    return monkeypatch


def test_a_target_may_be_a_dns_name_of_grpcs(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CARILLON_TARGET", "dns:///localhost:7007")
    assert settings.load().target == "dns:///localhost:7007"


def test_a_token_is_all_that_must_be_set() -> None:
    found = settings.load()
    assert found.token == "id.secret"
    assert (found.target, found.worker_concurrency, found.worker_port) == ("127.0.0.1:7007", 50, 7009)
    assert found.worker_name.endswith(f"-{os.getpid()}")
    assert len(found.base_urls) == 0


def test_an_empty_variable_counts_as_not_set(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CARILLON_TARGET", "")
    environment.setenv("CARILLON_WORKER_NAME", "")
    assert settings.load().target == "127.0.0.1:7007"


def test_the_token_may_be_in_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.delenv("CARILLON_WORKER_TOKEN")
    (tmp_path / "token").write_text("id.from-file\n")
    environment.setenv("CARILLON_WORKER_TOKEN_FILE", str(tmp_path / "token"))
    assert settings.load().token == "id.from-file"


def test_base_urls_are_read_by_service(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CARILLON_BASE_URLS", "email-service=http://10.0.0.1:8080, other=https://u:p@b/pre,")
    found = settings.load().base_urls.http
    assert {service: str(url) for service, url in found.items()} == {
        "email-service": "http://10.0.0.1:8080",
        "other": "https://u:p@b/pre",
    }


def test_words_may_be_written_in_capitals(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CARILLON_LOG_FORMAT", "Text")
    environment.setenv("CARILLON_LOG_LEVEL", "INFO")
    assert (settings.load().log_format, settings.load().log_level) == ("text", "info")


def test_what_may_be_called_is_read_by_entry(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CARILLON_ALLOWED_TARGETS", "a.example:80, *.internal:8080,[::1]:*,")
    environment.setenv("CARILLON_ALLOWED_NETWORKS", "10.0.0.0/8, fd00::/8,127.0.0.1")
    found = settings.load()
    assert [str(target.host) for target in found.allowed_targets] == ["a.example", "*.internal", "::1"]
    assert [target.port for target in found.allowed_targets] == [80, 8080, None]
    assert [str(network) for network in found.allowed_networks] == ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"]


def test_base_urls_move_grpc_addresses_too(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CARILLON_BASE_URLS", "a=grpc://10.0.0.1:50051,a=http://10.0.0.1,b=grpcs://b.example:443")
    found = settings.load().base_urls
    assert {service: (str(server), server.tls) for service, server in found.grpc.items()} == {
        "a": ("10.0.0.1:50051", False),
        "b": ("b.example:443", True),
    }
    assert {service: str(url) for service, url in found.http.items()} == {"a": "http://10.0.0.1"}


@pytest.mark.parametrize("from_file", [False, True])
def test_signing_keys_are_read_by_service_and_not_shown(
    environment: pytest.MonkeyPatch, tmp_path: Path, from_file: bool
) -> None:
    keys = f"email-service={KEY},\nemail-service=whsec_{'A' * 42}E=, kpi-service={KEY}"
    if from_file:
        (tmp_path / "keys").write_text(f"{keys}\n")
        environment.setenv("CARILLON_SIGNING_KEYS_FILE", str(tmp_path / "keys"))
    else:
        environment.setenv("CARILLON_SIGNING_KEYS", keys)
    found = settings.load()
    signatures = {name: keys.headers("r", 1, b"")["webhook-signature"] for name, keys in found.signing_keys.items()}
    assert {name: len(text.split()) for name, text in signatures.items()} == {"email-service": 2, "kpi-service": 1}
    assert KEY.removeprefix("whsec_") not in f"{found!r} {found} {vars(found)} {found.signing_keys}"


def test_wrong_keys_of_a_file_are_a_sentence(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("email-service=whsec_hidden")
    environment.setenv("CARILLON_SIGNING_KEYS_FILE", str(tmp_path / "keys"))
    with pytest.raises(SettingsError, match=r"^CARILLON_SIGNING_KEYS_FILE has wrong keys for email-service:") as caught:
        settings.load()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("TARGET", "localhost", "must be host:port, such as 127.0.0.1:7007"),
        ("TARGET", "http://u:hidden@localhost:7007", "cannot be used: write host:port, without http://"),
        ("TARGET", "u:hidden@localhost:7007", "cannot be used: write host:port, without spaces, backslashes, '?'"),
        ("TARGET", "ipv4:10.0.0.1:7007#/localhost:7007", "cannot be used: write host:port, without"),
        ("TARGET", "dns://hidden/localhost:7007", "cannot be used: write dns:///host:port"),
        ("TARGET", "hidden/localhost:7007", "must be host:port"),
        ("TARGET", "localhost:70000", "must be host:port, such as 127.0.0.1:7007"),
        ("WORKER_NAME", "a\nb", "must be 1 to 200 printable characters"),
        ("WORKER_CONCURRENCY", "0", "must be greater than or equal to 1"),
        ("WORKER_CONCURRENCY", "many", "must be a valid integer"),
        ("WORKER_PORT", "65536", "must be less than or equal to 65535"),
        ("DRAIN_SECONDS", "nan", "must be a finite number"),
        ("DRAIN_SECONDS", "-1", "must be greater than or equal to 0"),
        ("BASE_URLS", "http://u:hidden@a", "must be written as service=http://host:port"),
        ("BASE_URLS", "a=http://b,http://u:hidden@a?b=c", "must be written as service=http://host:port, several"),
        ("BASE_URLS", "a=b", "has a wrong URL in entry 1: it must begin with http:// or https://"),
        ("BASE_URLS", "a=http://u:hidden@b:99999", "has a wrong URL in entry 1: it is not a URL"),
        ("BASE_URLS", "a=http://b?c=d", "has a wrong URL in entry 1: it is a base URL, and has a query or a fragment"),
        ("BASE_URLS", "a=grpc://b", "has a wrong URL in entry 1: it must be grpc://host:port or grpcs://host:port"),
        (
            "BASE_URLS",
            "a=http://127.1",
            "has a wrong URL in entry 1: it has a host that is an address in an unusual spelling",
        ),
        ("ALLOWED_TARGETS", "a.example", "has an entry, number 1, that must be host:port"),
        (
            "ALLOWED_TARGETS",
            "a:80,127.1:80",
            "has an entry, number 2, that has a host that is an address in an unusual",
        ),
        ("ALLOWED_TARGETS", "u:hidden@a.example:80", "has an entry, number 1, that must be host:port"),
        ("ALLOWED_TARGETS", "http://a.example:80", "has an entry, number 1, that begins with a scheme: drop http://"),
        (
            "ALLOWED_NETWORKS",
            "10.0.0.1/8",
            "has an entry, number 1, that has bits set beyond its prefix: write 10.0.0.0/8",
        ),
        ("ALLOWED_NETWORKS", "::ffff:10.0.0.0/104", "has an entry, number 1, that stands for IPv4 addresses"),
        (
            "ALLOWED_NETWORKS",
            "::1,hidden",
            "has an entry, number 2, that is no network, such as 10.0.0.0/8 or fd00::/8",
        ),
        ("SIGNING_KEYS", "whsec_hidden", "must be written as service=whsec_..., several separated by commas"),
        (
            "SIGNING_KEYS",
            f"a={KEY},whsec_hidden=",
            "must be written as service=whsec_..., several separated by commas; what",
        ),
        ("SIGNING_KEYS", "whsec_HIDDEN_hidden==", "must be written as service=whsec_..., several"),
        ("SIGNING_KEYS", f"a={KEY},a={KEY}", "has wrong keys for a: a service's two signing keys are the same"),
        ("SIGNING_KEYS", "a=hidden", "has wrong keys for a: a signing key is malformed"),
        ("SIGNING_KEYS", f"a={KEY},a={KEY},a={KEY}", "has wrong keys for a: a service has one signing key, or two"),
        ("REQUIRE_SIGNING", "perhaps", "must be a valid boolean"),
        ("LOG_FORMAT", "xml", "must be 'json' or 'text'"),
        ("LOG_LEVEL", "loud", "must be 'debug', 'info', 'warning' or 'error'"),
        ("WORKER_TOKEN", "hidden\u00e4", "must be printable ASCII"),
    ],
)
def test_a_wrong_setting_is_a_sentence_that_names_it(
    environment: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    environment.setenv(f"CARILLON_{variable}", value)
    with pytest.raises(SettingsError) as caught:
        settings.load()
    assert str(caught.value).startswith(f"CARILLON_{variable} {sentence}")
    assert "hidden" not in str(caught.value)


def test_no_token_at_all_is_a_sentence(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("CARILLON_WORKER_TOKEN")
    with pytest.raises(SettingsError, match=r"^CARILLON_WORKER_TOKEN \(or CARILLON_WORKER_TOKEN_FILE\) is required"):
        settings.load()


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"\xff\xfe", "holds more than a token"), (b" \n", "is empty"), (None, "No such file")]
)
def test_a_token_file_without_a_token_is_a_sentence(
    environment: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    environment.delenv("CARILLON_WORKER_TOKEN")
    environment.setenv("CARILLON_WORKER_TOKEN_FILE", str(tmp_path / "token"))
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(SettingsError, match=f"^CARILLON_WORKER_TOKEN_FILE.*{sentence}"):
        settings.load()
