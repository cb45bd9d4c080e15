"""Whom callers without credentials are counted with."""

from __future__ import annotations

import pytest

from scheduler_service.rpc.addresses import address_of


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:1000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:1000", "2001:db8::/64"),
        ("ipv6:[2001:db8::ffff]:1", "2001:db8::/64"),
        ("ipv6:%5B2001:db8:0:1::1%5D:1000", "2001:db8:0:1::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1000", "fe80::/64"),
        ("unix:", "unix:"),
    ],
)
def test_an_address_is_a_host_whatever_its_port(peer: str, address: str) -> None:
    assert address_of(peer) == address
