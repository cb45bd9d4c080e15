"""Endpoints that lead where no job may have anything called, in every spelling that some program understands."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from carillon.execution import Failed

from tests.unit.worker_service.conftest import ANYWHERE, Caller
from worker_service.targets.addresses import parse, place
from worker_service.targets.allowed import Gate
from worker_service.targets.hosts import Address
from worker_service.targets.networks import Networks
from worker_service.targets.resolving import Names

# What the names mean here: as an attacker would have his own DNS say it.
ZONE = {
    "localhost": ["127.0.0.1", "::1"],
    "a.localhost": ["127.0.0.1"],
    "loopback.example": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "private.example": ["10.1.2.3"],
    "mixed.example": ["93.184.216.34", "10.1.2.3"],
    "mixed6.example": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "translated.example": ["64:ff9b::7f00:1"],
    "scoped.example": ["fe80::1"],
    "xn--mller-kva.example": ["192.168.1.1"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
    "0x7f.example": ["127.0.0.1"],
}

# Addresses, written as they should be, that are not public.
NOT_PUBLIC = [
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://10.0.0.1/",
    "http://10.255.255.255/",
    "http://100.64.0.1/",
    "http://100.127.255.255/",
    "http://100.100.100.200/",
    "http://127.0.0.1/",
    "http://127.255.255.254/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.170.2/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.0.0.8/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://192.168.0.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::]/",
    "http://[::1]/",
    "http://[::7f00:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[0:0:0:0:0:ffff:10.0.0.1]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::169.254.169.254]/",
    "http://[64:ff9b:1::1]/",
    "http://[100::1]/",
    "http://[2001::1]/",
    "http://[2001:0:7f00:1::]/",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "http://[2001:db8::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2002:5db8:d822::1]/",
    "http://[2a00:1450::5efe:10.0.0.1]/",
    "http://[2a00:1450::200:5efe:127.0.0.1]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[ff0e::1]/",
    "https://127.0.0.1:8443/",
    "HTTP://127.0.0.1/",
    "http://example.com@127.0.0.1/",
    "http://example.com:80@127.0.0.1/",
    "http://user:p@[::1]/",
    "http://127.0.0.1:80#@example.com/",
    "http://127.0.0.1?@example.com/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://[0000::0001]/",
]

# Names that lead to one that is not public; one bad address among good ones is enough.
NAMES = [
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://a.localhost/",
    "http://ⓛocalhost/",
    "http://loopback.example/",
    "http://metadata.google.internal/",
    "http://private.example/",
    "http://mixed.example/",
    "http://mixed6.example/",
    "http://mapped.example/",
    "http://translated.example/",
    "http://scoped.example/",
    "http://müller.example/",
    "http://xn--mller-kva.example/",
    "http://127.0.0.1.nip.example/",
    "http://0x7f.example/",
    "http://example.com@private.example/",
]

# What is read differently from program to program, and so is not read at all.
UNCLEAR = [
    "http://2130706433/",
    "http://017700000001/",
    "http://0x7f000001/",
    "http://0X7F000001/",
    "http://0177.0.0.1/",
    "http://0177.1/",
    "http://0x7f.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.01/",
    "http://0127.0.0.1/",
    "http://127.0.0.1./",
    "http://0/",
    "http://00000177.0.0.1/",
    "http://127.0.0.0x1/",
    "http://256.0.0.1/",
    "http://1.2.3.4.5/",
    "http://4294967297/",
    "http://example.0x/",
    "http://a.1/",
    "http://[fe80::1%eth0]/",
    "http://[fe80::1%25eth0]/",
    "http://[::1%251]/",
    "http://[127.0.0.1]/",
    "http://[::1]./",
    "http://[v1.x]/",
    "http://%31%32%37.0.0.1/",
    "http://127.0.0.%31/",
    "http://example..com/",
    "http://.example.com/",
    "http://-a.example/",
    "http://*/",
    "http://*.example.com/",
    "http://a_b!.example/",
    "http:///127.0.0.1/",
    "http:/127.0.0.1/",
    "http:127.0.0.1/",
    "http://",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:65536/",
    "http://127.0.0.1:-1/",
    "http://127.0.0.1:8o/",
    "ftp://127.0.0.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "unix:///run/docker.sock",
    "//127.0.0.1/",
    "127.0.0.1",
    "http://127.0.0.1\\@example.com/",
    "http://example.com\\@127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http://127.0.0.1\t/",
    "http://12\t7.0.0.1/",
    "ht\ntp://127.0.0.1/",
    " http://127.0.0.1/",
    "http://127.0.0.1 /",
    "http://127.0.0.1\x00.example.com/",
    "http://127.0.0.1%00.example.com/",
    "http://127.0.0.1\r\nHost: example.com/",
    f"http://{'a' * 64}.example/",
    f"http://{'a.' * 127}example/",
]


def ask_zone(name: str) -> Sequence[Address]:
    return [ipaddress.ip_address(text) for text in ZONE[name]]


@pytest.fixture
async def gate() -> Gate:
    """The list lets everything through, so that only the addresses count."""
    return Gate(ANYWHERE, Networks(), Names(ask_zone))


def test_there_are_enough_of_them() -> None:
    assert len({*NOT_PUBLIC, *NAMES, *UNCLEAR}) == len(NOT_PUBLIC) + len(NAMES) + len(UNCLEAR) > 130


@pytest.mark.parametrize("endpoint", NOT_PUBLIC + NAMES)
async def test_an_address_that_is_not_public_is_refused_without_a_call(caller: Caller, endpoint: str) -> None:
    failed = await caller.failure(endpoint)
    assert failed.code == "TARGET_NOT_ALLOWED"
    assert "in none of CARILLON_ALLOWED_NETWORKS" in failed.message
    assert caller.calls == []


@pytest.mark.parametrize("endpoint", UNCLEAR)
async def test_an_unclear_spelling_is_refused_without_a_call(caller: Caller, endpoint: str) -> None:
    failed = await caller.failure(endpoint)
    assert failed.code == "TARGET_NOT_ALLOWED"
    assert failed.message.startswith("the endpoint ")
    assert caller.calls == []


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        ("http://Example.COM/a?b=%2F", "example.com", 80),
        ("https://example.com./", "example.com", 443),
        ("http://bücher.example:8080/", "xn--bcher-kva.example", 8080),
        ("http://\uff18.\uff18.\uff18.\uff18/", "8.8.8.8", 80),
        ("http://[::ffff:8.8.8.8]/", "8.8.8.8", 80),
        ("http://[2A00:1450:0:0::1]:81/", "2a00:1450::1", 81),
        ("http://email_service:08080/", "email_service", 8080),
        ("http://1password.example/", "1password.example", 80),
    ],
)
def test_what_is_clear_has_one_spelling(endpoint: str, host: str, port: int) -> None:
    url = parse(endpoint)
    assert url.raw_host == host
    assert (str(place(url)[0]), place(url)[1]) == (host, port)


async def test_public_addresses_are_let_through_as_they_are(gate: Gate) -> None:
    for text in ("8.8.8.8", "2a00:1450::1", "64:ff9b::808:808", "192.0.1.1", "172.32.0.1", "100.128.0.1"):
        address = ipaddress.ip_address(text)
        assert await gate.admit("POST", "email-service", address, 80) == (address,)


async def test_nobody_is_told_what_a_name_means_inside(gate: Gate) -> None:
    with pytest.raises(Failed) as caught:
        await gate.admit("POST", "email-service", "private.example", 80)
    assert "10.1.2.3" not in str(caught.value)
