"""The address that a run is sent to, and how that address may be shown."""

from __future__ import annotations

from yarl import URL

SCHEMES = frozenset({"http", "https"})


class AddressError(ValueError):
    """What is wrong with a URL, as the end of a sentence that began with its name."""


def parse(text: str) -> URL:
    """An absolute `http://` or `https://` URL with a host.

    Errors: AddressError, which never repeats the URL.
    """
    try:
        url = URL(text)
    except ValueError:  # yarl's own words may repeat a password
        raise AddressError("is not a URL") from None
    if url.scheme not in SCHEMES or not url.host:
        raise AddressError("must begin with http:// or https:// and name a host")
    return url


def rebase(endpoint: URL, base: URL) -> URL:
    """The endpoint at another base: its path and query, after the base's scheme, authority and path."""
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
