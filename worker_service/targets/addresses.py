"""The address that a run is sent to, and how that address may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from yarl import URL

from worker_service.targets import hosts
from worker_service.targets.hosts import Host, HostError

SCHEMES = frozenset({"http", "https"})
PLAIN = "grpc"
SECURE = "grpcs"

# Parsers of URLs pass over these, each in a way of its own.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
_LEADS_OUT = re.compile(r"%(?:25)*(?:2f|2e|5c)|/\.\.?(?:[;/]|$)", re.IGNORECASE)
_AUTHORITY_END = re.compile(r"[/?#]")


class AddressError(ValueError):
    """What is wrong with a URL, as the end of a sentence that began with its name."""


@dataclass(frozen=True, slots=True)
class GrpcAddress:
    """Where a gRPC server is, and whether it speaks TLS."""

    host: Host
    port: int
    tls: bool

    def __str__(self) -> str:
        return hosts.place(self.host, self.port)


@dataclass(frozen=True, slots=True)
class BaseUrls:
    """Where a deployment says that services are, by service."""

    http: dict[str, URL] = field(default_factory=dict)
    grpc: dict[str, GrpcAddress] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.http) + len(self.grpc)


def parse(text: str) -> URL:
    """An absolute `http://` or `https://` URL, its host in the one spelling that is checked and connected to.

    Errors: AddressError, which never repeats the URL.
    """
    if _AMBIGUOUS.search(text):
        raise AddressError("has a space, a control character or a backslash")
    try:
        url = URL(text)
    except ValueError:  # yarl's own words may repeat a password
        raise AddressError("is not a URL") from None
    if url.scheme not in SCHEMES or not url.raw_host:
        raise AddressError("must begin with http:// or https:// and name a host")
    # yarl takes a name in brackets for a name.
    if ":" not in url.raw_host and "[" in _AUTHORITY_END.split(text.partition("//")[2])[0]:
        raise AddressError("has something other than an IPv6 address in brackets")
    try:
        host, _ = place(url)
    except HostError as error:
        raise AddressError(str(error)) from None
    return url if str(host) == url.raw_host else url.with_host(str(host))


def parse_base(text: str) -> URL:
    """As `parse`, for a URL that others continue. Errors: AddressError."""
    url = parse(text)
    if url.query_string or url.fragment:
        raise AddressError("is a base URL, and has a query or a fragment")
    return url


def place(url: URL) -> tuple[Host, int]:
    """The host and port of a URL that has both. Errors: HostError."""
    return hosts.read_host(url.raw_host or ""), hosts.read_port(str(url.port))


def parse_grpc(text: str) -> GrpcAddress:
    """`grpc://host:port` or, with TLS, `grpcs://host:port`. Errors: AddressError."""
    scheme, _, rest = text.partition("://")
    parts = hosts.split_port(rest)
    if scheme not in (PLAIN, SECURE) or parts is None:
        raise AddressError("must be grpc://host:port or grpcs://host:port")
    try:
        return GrpcAddress(hosts.read_host(parts[0]), hosts.read_port(parts[1]), tls=scheme == SECURE)
    except HostError as error:
        raise AddressError(str(error)) from None


def rebase(endpoint: URL, base: URL) -> URL:
    """The endpoint at another base: its path and query, after the base's scheme, authority and path.

    Errors: AddressError, for a path that some servers would read as one beside the base's.
    """
    if base.raw_path.rstrip("/") and _LEADS_OUT.search(endpoint.raw_path):
        raise AddressError("has an encoded slash or dot in its path, which could lead out of its base URL's")
    return URL.build(
        scheme=base.scheme,
        authority=base.raw_authority,
        path=base.raw_path.rstrip("/") + endpoint.raw_path,
        query_string=endpoint.raw_query_string,
        encoded=True,
    )


def shown(url: URL) -> str:
    """The URL for logs and records: without user, password, query and fragment, which may be secret."""
    return str(url.with_user(None).with_query(None).with_fragment(None))
