"""Where a target is: gRPC's names of it, such as `host:port`, `dns:///host:port`, `ipv4:a:1,b:2` or `unix:/path`."""

from __future__ import annotations

import ipaddress
import random
import re

# In gRPC's URIs they end or change what stands before them, so that one reader sees another host than the next.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f?#%@\\]")
# `dns://127.0.0.1:53/`: who is to resolve the name behind it. By its address, as gRPC demands.
_RESOLVER = re.compile(r"dns://(?:\[[0-9A-Fa-f:.]+\]|[0-9]{1,3}(?:\.[0-9]{1,3}){3})(?::[0-9]{1,5})?/")
_SCHEME = re.compile(r"(?:(dns):(?:///)?|(ipv4|ipv6):)")
_HOST = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([^\[\]:/,]+)(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)")


def check_target(target: str) -> str:
    """The target. Raises ValueError, with a sentence that does not repeat it, for one that readers take differently."""
    if target.startswith(("http://", "https://")):
        raise ValueError(f"write host:port, without {target.partition('//')[0]}//")
    if _AMBIGUOUS.search(target):
        raise ValueError("write host:port, without spaces, backslashes, '?', '#', '%' and '@'")
    if target.startswith("dns://") and not target.startswith("dns:///") and not _RESOLVER.match(target):
        raise ValueError("write dns:///host:port, or dns://10.0.0.53:53/host:port with the resolver's address")
    return target


def place_of(target: str) -> str:
    """The target without `dns:///`, or without `dns://` and its resolver."""
    resolver = _RESOLVER.match(target)
    return target[resolver.end() :] if resolver else target.removeprefix("dns:///")


def is_list(target: str) -> bool:
    """Whether the target is a list of addresses, such as `ipv4:a:1,b:2`, or could be one."""
    scheme = _SCHEME.match(target)
    return bool(scheme and scheme.group(2))


class Turns:
    """A target's addresses in an order of their own, another one first each time: a list such as `ipv4:a:1,b:2`, whose
    first may accept connections and answer nothing. Any other target stays as it is."""

    def __init__(self, target: str) -> None:
        scheme, _, addresses = target.partition(":") if is_list(target) else ("", "", target)
        self._prefix = f"{scheme}:" if scheme else ""
        self._addresses = addresses.split(",") if scheme else [target]
        random.shuffle(self._addresses)

    def next(self) -> str:
        """The target to connect to now."""
        self._addresses.append(self._addresses.pop(0))
        return self._prefix + ",".join(self._addresses)


def is_loopback(target: str) -> bool:
    """Whether whatever is sent to the target stays on this machine, as far as its text says. What is not understood is
    elsewhere."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    scheme = _SCHEME.match(target)
    addresses = target[scheme.end() :] if scheme else target
    return all(_is_loopback_host(address.strip()) for address in addresses.split(","))


def _is_loopback_host(address: str) -> bool:
    found = _HOST.fullmatch(address)
    if found is None:
        return False
    host = next(filter(None, found.groups()), "")
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
