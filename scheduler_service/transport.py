"""What the gRPC ports speak: the settings about TLS, and whether they fit together."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from operations.tls_files import TlsFiles, TlsFilesError
from scheduler_service.identity.certificates import parse_worker_certificates


@dataclass(frozen=True, slots=True)
class Transport:
    """The settings of these names; see there."""

    host: str
    certificate: Path | None
    key: Path | None
    plaintext: bool
    mtls_port: int | None
    client_ca: Path | None
    worker_certificates: str
    require_mtls: bool

    @property
    def files(self) -> TlsFiles | None:
        """Of the first port; None where it speaks plain."""
        return TlsFiles(self.certificate, self.key) if self.certificate and self.key else None

    @property
    def mtls_files(self) -> TlsFiles | None:
        """Of the mTLS port; None where there is none."""
        if self.files is None or self.client_ca is None or self.mtls_port is None:
            return None
        return replace(self.files, client_ca=self.client_ca)

    def services_of_certificates(self) -> Mapping[str, str]:
        """Errors: ValueError."""
        try:
            return parse_worker_certificates(self.worker_certificates)
        except ValueError as error:
            raise ValueError(f"CARILLON_WORKER_CERTIFICATES: {error}") from None

    def check(self) -> None:
        """Errors: ValueError, a sentence that names the variable."""
        self._check_first_port()
        self._check_mtls_port()
        try:
            if files := self.mtls_files or self.files:
                files.read()
        except TlsFilesError as error:
            raise ValueError(
                "CARILLON_TLS_CERTIFICATE_FILE, CARILLON_TLS_KEY_FILE, CARILLON_TLS_CLIENT_CA_FILE: " + str(error)
            ) from None

    def _check_first_port(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("CARILLON_TLS_CERTIFICATE_FILE and CARILLON_TLS_KEY_FILE go together; set both or neither")
        if self.files is not None and self.plaintext:
            raise ValueError("CARILLON_PLAINTEXT and CARILLON_TLS_CERTIFICATE_FILE are both set; leave out one")
        if self.files is None and not self.plaintext and not is_loopback(self.host):
            raise ValueError(
                f"CARILLON_HOST is {self.host}, which others reach, and there is no TLS: set "
                "CARILLON_TLS_CERTIFICATE_FILE and CARILLON_TLS_KEY_FILE, or CARILLON_PLAINTEXT=true if a mesh or "
                "a proxy brings the TLS"
            )

    def _check_mtls_port(self) -> None:
        if self.mtls_port is None:
            stray = {
                "CARILLON_TLS_CLIENT_CA_FILE": self.client_ca,
                "CARILLON_WORKER_CERTIFICATES": self.worker_certificates,
                "CARILLON_REQUIRE_MTLS": self.require_mtls,
            }
            for name, value in stray.items():
                if value:
                    raise ValueError(f"{name} needs CARILLON_MTLS_PORT, where clients show their certificates")
            return
        if self.mtls_files is None:
            raise ValueError(
                "CARILLON_MTLS_PORT needs CARILLON_TLS_CERTIFICATE_FILE, CARILLON_TLS_KEY_FILE and "
                "CARILLON_TLS_CLIENT_CA_FILE"
            )
        if not self.services_of_certificates():
            raise ValueError("CARILLON_MTLS_PORT needs CARILLON_WORKER_CERTIFICATES, or nobody could use it")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches who listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
