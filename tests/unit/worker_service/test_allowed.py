"""The list of what may be called, and the networks that an operator names."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from carillon.execution import Failed
from structlog.testing import capture_logs

from worker_service.targets.allowed import Gate, read_target
from worker_service.targets.hosts import Address, Host, HostError, read_host
from worker_service.targets.networks import Networks, read_network

NAMED = Networks([read_network(text) for text in ("10.0.0.0/8", "169.254.0.0/16", "fd00::/8", "0.0.0.0/0", "::/0")])


class Asked:
    """Answers with the address it was made for, and keeps the names it was asked for."""

    def __init__(self, address: str) -> None:
        self._address = ipaddress.ip_address(address)
        self.names: list[str] = []

    async def __call__(self, name: str, _service: str) -> Sequence[Address]:
        self.names.append(name)
        return [self._address]


async def admitted(
    listed: str, host: str, port: int, *, address: str = "8.8.8.8", service: str = "email-service"
) -> bool:
    gate = Gate([read_target(entry) for entry in listed.split()], Networks(), Asked(address))
    try:
        return bool(await gate.admit("POST", service, read_host(host), port))
    except Failed as failed:
        return failed.code != "TARGET_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("listed", "host", "port", "expected"),
    [
        ("a.example:80", "a.example", 80, True),
        ("A.Example.:80", "a.example", 80, True),
        ("a.example:80", "a.example", 81, False),
        ("a.example:80", "b.example", 80, False),
        ("a.example:80", "a.example.evil.example", 80, False),
        ("a.example:80", "xa.example", 80, False),
        ("a.example:*", "a.example", 65_535, True),
        ("*.example:80", "a.example", 80, True),
        ("*.example:80", "a.b.example", 80, False),
        ("*.example:80", "example", 80, False),
        ("*.example:80", "aexample", 80, False),
        ("*:443", "a.example", 443, True),
        ("*:443", "8.8.8.8", 443, True),
        ("*:443", "a.example", 80, False),
        ("8.8.8.8:53", "8.8.8.8", 53, True),
        ("8.8.8.8:53", "8.8.4.4", 53, False),
        ("[2a00::1]:80", "2a00:0::1", 80, True),
        ("[::ffff:8.8.8.8]:80", "8.8.8.8", 80, True),
        ("b:1 a:80", "a", 80, True),
        ("", "a.example", 80, False),
    ],
)
async def test_the_list_says_what_is_called(listed: str, host: str, port: int, expected: bool) -> None:
    assert await admitted(listed, host, port) is expected


async def test_what_is_not_listed_is_not_even_looked_up() -> None:
    asked = Asked("8.8.8.8")
    gate = Gate([read_target("a.example:80")], Networks(), asked)
    with pytest.raises(Failed) as caught:
        await gate.admit("POST http://b.example:8080/x", "email-service", "b.example", 8080)
    assert caught.value.message == (
        "POST http://b.example:8080/x is not allowed: "
        "b.example:8080 is not among CARILLON_ALLOWED_TARGETS of the worker service"
    )
    assert asked.names == []


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("a.example", "must be host:port"),
        ("http://a.example:80", "begins with a scheme: drop http://"),
        ("user:password@a.example:80", "must be host:port"),
        ("Email Service@a.example:80", "must be host:port"),
        ("@a.example:80", "must be host:port"),
        ("::1:80", "must be host:port"),
        ("a.example:", "needs a port from 1 to 65535"),
        ("a.example:0", "needs a port from 1 to 65535"),
        ("a.example:99999", "needs a port from 1 to 65535"),
        ("a.*.example:80", "has a host that is neither a name"),
        ("*a.example:80", "has a host that is neither a name"),
        ("*.10.0.0.1:80", "has a wildcard before an address"),
        ("10.0.0.0/8:80", "has a host that is neither a name"),
        ("127.1:80", "has a host that is an address in an unusual spelling"),
        ("[fe80::1%eth0]:80", "has an address with a zone"),
        (":80", "must be host:port"),
    ],
)
def test_a_wrong_entry_is_a_sentence(entry: str, sentence: str) -> None:
    with pytest.raises(HostError, match=f"^{sentence}"):
        read_target(entry)


@pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1", "::1", "fd12::1", "64:ff9b::a01:203"])
async def test_a_name_may_lead_into_a_named_network_only(address: str) -> None:
    assert not await admitted("a.example:80", "a.example", 80, address=address)
    gate = Gate([read_target("a.example:80")], NAMED, Asked(address))
    assert await gate.admit("POST", "email-service", "a.example", 80) == (ipaddress.ip_address(address),)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "ff02::1", "::ffff:0.0.0.0", "64:ff9b::e000:1"),
        *("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
        *("168.63.129.16", "169.254.0.23", "169.254.42.42", "192.0.0.192", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1::1"),
        *("2002:a9fe:a9fe::1", "2002:e000:1::", "2001:0:a9fe:a9fe::f7f7:f7f7", "2001:0:808:808::5601:5601"),
        *("::a9fe:a9fe", "2a00:1450::5efe:a9fe:a9fe"),
    ],
)
async def test_no_wide_network_opens_what_is_no_service(address: str) -> None:
    gate = Gate([read_target("*:*")], NAMED, Asked(address))
    with pytest.raises(Failed, match="not allowed"):
        await gate.admit("POST", "email-service", "a.example", 80)


async def test_metadata_is_opened_by_its_own_address_alone() -> None:
    only = Networks([read_network("169.254.169.254")])
    gate = Gate([read_target("metadata:80")], only, Asked("169.254.169.254"))
    assert await gate.admit("POST", "email-service", "metadata", 80)


async def test_an_address_that_is_listed_itself_needs_no_network() -> None:
    assert await admitted("127.0.0.1:80", "127.0.0.1", 80)
    assert not await admitted("*:80", "127.0.0.1", 80)
    assert not await admitted("a.example:80 127.0.0.1:80", "a.example", 80, address="127.0.0.1")
    assert not await admitted("0.0.0.0:80", "0.0.0.0", 80)


async def test_a_public_address_of_a_cloud_is_called_only_if_it_is_named_itself() -> None:
    assert not await admitted("*:80", "168.63.129.16", 80)
    assert not await admitted("wire:80", "wire", 80, address="168.63.129.16")
    assert await admitted("168.63.129.16:80", "168.63.129.16", 80)


async def test_an_entry_may_be_one_services_alone() -> None:
    listed = "kpi-service@a.example:80 kpi-service@127.0.0.1:80 *:443"
    assert await admitted(listed, "a.example", 80, service="kpi-service")
    assert not await admitted(listed, "a.example", 80)
    assert await admitted(listed, "127.0.0.1", 80, service="kpi-service")
    assert not await admitted(listed, "127.0.0.1", 80)
    assert not await admitted(f"{listed} *:80", "127.0.0.1", 80)


@pytest.mark.parametrize(
    ("host", "address", "remedy"),
    [
        ("localhost", "127.0.0.1", "; add 127.0.0.1 there if it is meant"),
        ("a.example", "10.1.2.3", "; add what its log says there if it is meant"),
        ("a.example", "224.0.0.1", ""),
    ],
)
async def test_who_forgot_the_network_reads_what_to_add(host: str, address: str, remedy: str) -> None:
    gate = Gate([read_target("*:8081")], Networks(), Asked(address))
    with capture_logs() as logs, pytest.raises(Failed) as caught:
        await gate.admit("POST", "email-service", host, 8081)
    assert caught.value.message == (
        f"POST is not allowed: {host}:8081 has an address that is not public, "
        f"in none of CARILLON_ALLOWED_NETWORKS of the worker service{remedy}"
    )
    assert [each["add_networks"] for each in logs] == [address if remedy else ""]


async def test_one_bad_address_refuses_all() -> None:
    async def both(_name: str, _service: str) -> Sequence[Address]:
        return [ipaddress.ip_address(text) for text in ("8.8.8.8", "192.168.0.1")]

    with pytest.raises(Failed):
        await Gate([read_target("*:*")], Networks([read_network("10.0.0.0/8")]), both).admit(
            "POST", "email-service", "a.example", 80
        )


@pytest.mark.parametrize("host", ["127.0.0.1", "a.example"])
async def test_what_the_operator_named_elsewhere_is_listed(host: Host) -> None:
    gate = Gate([], Networks(), Asked("8.8.8.8"))
    assert await gate.admit("POST", "email-service", read_host(str(host)), 80, listed=True)
