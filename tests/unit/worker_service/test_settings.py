"""Settings: their defaults, and the sentence for each wrong one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker_service import settings
from worker_service.settings import SettingsError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for variable in [name for name in os.environ if name.startswith("CARILLON_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("CARILLON_WORKER_TOKEN", "id.secret")
    return monkeypatch


def test_a_token_is_all_that_must_be_set() -> None:
    found = settings.load()
    assert found.token == "id.secret"
    assert (found.target, found.worker_concurrency, found.worker_port) == ("127.0.0.1:7007", 50, 7009)
    assert found.worker_name.endswith(f"-{os.getpid()}")
    assert found.base_urls == {}


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
    found = settings.load().base_urls
    assert {service: str(url) for service, url in found.items()} == {
        "email-service": "http://10.0.0.1:8080",
        "other": "https://u:p@b/pre",
    }


def test_words_may_be_written_in_capitals(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CARILLON_LOG_FORMAT", "Text")
    environment.setenv("CARILLON_LOG_LEVEL", "INFO")
    assert (settings.load().log_format, settings.load().log_level) == ("text", "info")


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("TARGET", "localhost", "must be host:port, such as 127.0.0.1:7007, not 'localhost'"),
        ("TARGET", "http://localhost:7007", "must be host:port, such as 127.0.0.1:7007"),
        ("TARGET", "localhost:70000", "must be host:port, such as 127.0.0.1:7007, not 'localhost:70000'"),
        ("WORKER_NAME", "a\nb", "must be 1 to 200 printable characters"),
        ("WORKER_CONCURRENCY", "0", "must be greater than or equal to 1"),
        ("WORKER_CONCURRENCY", "many", "must be a valid integer"),
        ("WORKER_PORT", "65536", "must be less than or equal to 65535"),
        ("DRAIN_SECONDS", "nan", "must be a finite number"),
        ("DRAIN_SECONDS", "-1", "must be greater than or equal to 0"),
        ("BASE_URLS", "http://a", "must be written as service=http://host:port"),
        ("BASE_URLS", "a=b", "has a wrong URL for a: it must begin with http:// or https://"),
        ("BASE_URLS", "a=http://u:hidden@b:99999", "has a wrong URL for a: it is not a URL"),
        ("BASE_URLS", "a=http://b?c=d", "has a wrong URL for a: a base URL has no query and no fragment"),
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
