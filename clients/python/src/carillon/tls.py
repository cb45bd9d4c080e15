"""TLS to the scheduler: the files, and what is wrong where it does not come about."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for TLS, in PEM form. They are read when a channel is opened: a worker's for each new stream, so that
    renewed ones need no restart; a client's once, when it is opened.

    ca: the authorities to trust (default: those that gRPC brings). cert, key: the client's own, for mTLS.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError if one cannot be read, ValueError if one cannot be used, or only one of cert
        and key is given."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("Tls needs both cert and key, or neither")
        ca, key, cert = _read(self.ca), _read(self.key), _read(self.cert)
        self._check()
        return grpc.ssl_channel_credentials(ca, key, cert)

    def _check(self) -> None:
        """gRPC itself would only say that it cannot connect."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except ssl.SSLError:
                raise ValueError(f"{os.fspath(self.ca)} holds no certificate in PEM form") from None
        if self.cert is not None and self.key is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password="")  # or it would ask on the terminal
            except ssl.SSLError:
                raise ValueError(
                    f"{os.fspath(self.cert)} and {os.fspath(self.key)} must be a certificate and its own key without "
                    "a passphrase, in PEM form"
                ) from None


def tls_of_environment() -> Tls | bool | None:
    """`CARILLON_TLS_CA_FILE`, `CARILLON_TLS_CERTIFICATE_FILE`, `CARILLON_TLS_KEY_FILE`, or `CARILLON_TLS=true`; None if
    none is set. Raises ValueError if they contradict each other."""
    wanted = flag_of_environment("CARILLON_TLS")
    ca = os.environ.get("CARILLON_TLS_CA_FILE") or None
    cert = os.environ.get("CARILLON_TLS_CERTIFICATE_FILE") or None
    key = os.environ.get("CARILLON_TLS_KEY_FILE") or None
    if not (ca or cert or key):
        return wanted
    if wanted is False:
        raise ValueError("CARILLON_TLS is false, and CARILLON_TLS_..._FILE is set; leave out one")
    if (cert is None) != (key is None):
        raise ValueError("CARILLON_TLS_CERTIFICATE_FILE and CARILLON_TLS_KEY_FILE go together; set both or neither")
    return Tls(ca, cert, key)


def flag_of_environment(name: str) -> bool | None:
    """None if it is not set, or empty. Raises ValueError if it is neither true nor false."""
    text = os.environ.get(name, "")
    if not text:
        return None
    if text.lower() not in _FLAGS:
        raise ValueError(f"{name} is {text!r}; write true or false")
    return _FLAGS[text.lower()]


_HUNG_UP = (
    "the scheduler hung up at once; if it speaks TLS there, set tls=... or CARILLON_TLS_CA_FILE; if it wants a client "
    "certificate, set one that is valid and of an authority that it trusts; or it has as many connections as it takes "
    "(its CARILLON_MAX_CONNECTIONS)"
)
# What gRPC says of a connection that did not come about, and what is to be done about it.
_REMEDIES = (
    ("WRONG_VERSION_NUMBER", "that port speaks plain gRPC, not TLS; leave out tls, or use the port that speaks TLS"),
    (
        "certificate has expired",
        "the scheduler's certificate has expired; renew what its CARILLON_TLS_CERTIFICATE_FILE names",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the scheduler's certificate is of an authority that is not trusted here; name it with Tls(ca=...) or "
        "CARILLON_TLS_CA_FILE",
    ),
    (
        "Hostname Verification",
        "the scheduler's certificate is not for the host in the target; use a name that it has",
    ),
    ("Socket closed", _HUNG_UP),
    ("reset by peer", _HUNG_UP),
    ("Broken pipe", _HUNG_UP),
)
_NOT_CONNECTED = "failed to connect"


def remedy(details: str) -> str:
    """What is to be done about a call that failed because no TLS came about; empty for any other."""
    if _NOT_CONNECTED not in details:
        return ""
    return next((what for sign, what in _REMEDIES if sign in details), "")


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
