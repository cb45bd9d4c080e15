"""Where a target is: gRPC's names of it, such as `host:port`, `dns:///host:port`, `ipv4:a:1,b:2` or `unix:/path`."""

from __future__ import annotations

import ipaddress


def is_loopback(target: str) -> bool:
    """Whether whatever is sent to the target stays on this machine, as far as its text says."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        target = rest.rpartition("/")[2]  # dns://resolver/host:port
    return all(_is_loopback_host(_host(address.strip())) for address in target.split(","))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _is_loopback_host(host: str) -> bool:
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
