"""Targets that name a resolver of their own, as in `dns://10.0.0.53:53/scheduler:7007`."""

from __future__ import annotations

import pytest
from carillon.address import check_target, is_loopback, place_of
from carillon.channel import Connection

from worker_service.settings import SettingsError, load

WITH_A_RESOLVER = [
    "dns://10.0.0.53/scheduler:7007",
    "dns://10.0.0.53:53/scheduler:7007",
    "dns://[2001:db8::53]:53/scheduler:7007",
]
NO_RESOLVERS = [
    "dns://resolver/scheduler:7007",
    "dns://resolver:53/scheduler:7007",
    "dns://scheduler:7007",
    "dns://10.0.0.53:7007",
    "dns://10.0.0.53.example.com/scheduler:7007",
    "dns://10.0.0.53:53:53/scheduler:7007",
]


@pytest.mark.parametrize("target", WITH_A_RESOLVER)
def test_a_resolver_is_named_by_its_address(target: str) -> None:
    assert check_target(target) == target
    assert place_of(target) == "scheduler:7007"
    assert Connection.resolve(target, service_token="id.secret", tls=True).target == target


@pytest.mark.parametrize("target", NO_RESOLVERS)
def test_what_is_no_address_of_a_resolver_is_refused_with_what_to_write(target: str) -> None:
    with pytest.raises(ValueError, match=r"write dns:///host:port, or dns://10\.0\.0\.53:53/host:port with the resol"):
        check_target(target)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_where_a_resolver_says_that_a_name_is_counts_as_another_machine(name: str) -> None:
    assert not is_loopback(f"dns://127.0.0.1:53/{name}:7007")


@pytest.mark.parametrize("target", ["scheduler:7007", "dns:///scheduler:7007"])
def test_without_a_resolver_the_place_is_what_is_written(target: str) -> None:
    assert place_of(target) == "scheduler:7007"


def test_the_worker_service_takes_a_target_with_a_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARILLON_WORKER_TOKEN", "id.secret")
    monkeypatch.setenv("CARILLON_PLAINTEXT", "true")
    monkeypatch.setenv("CARILLON_TARGET", WITH_A_RESOLVER[1])
    assert load().target == WITH_A_RESOLVER[1]
    monkeypatch.setenv("CARILLON_TARGET", "dns://10.0.0.53:53/scheduler")
    with pytest.raises(SettingsError, match="CARILLON_TARGET must be host:port"):
        load()
