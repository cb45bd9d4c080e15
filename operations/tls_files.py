"""A process's own certificate and key, and the authorities that it asks others' certificates of: files in PEM form."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key


class TlsFilesError(Exception):
    """The files cannot be used; the message is one sentence that names the file."""


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files hold: fits together, and can be used."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """`certificate` may be followed by its intermediates. `client_ca`: who signs the certificates of clients."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def contents(self) -> Pems:
        """What the files hold, whatever it is. Errors: TlsFilesError if one cannot be read."""
        return Pems(_read(self.certificate), _read(self.key), _read(self.client_ca) if self.client_ca else None)

    def read(self) -> Pems:
        """Errors: TlsFilesError if one cannot be read or used, or the key is another certificate's."""
        pems = self.contents()
        self.check(pems)
        return pems

    def check(self, pems: Pems) -> None:
        """Errors: TlsFilesError, about these contents of the files."""
        certificate = _certificates(self.certificate, pems.certificate)[0]
        try:
            key = load_pem_private_key(pems.key, password=None)
        except TypeError:
            raise TlsFilesError(f"{self.key} is encrypted; give a key without a passphrase") from None
        except (ValueError, UnsupportedAlgorithm):
            raise TlsFilesError(f"{self.key} holds no private key in PEM form") from None
        spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*spki) != certificate.public_key().public_bytes(*spki):
            raise TlsFilesError(f"{self.key} is not the key of the first certificate in {self.certificate}")
        if self.client_ca and pems.client_ca is not None:
            _certificates(self.client_ca, pems.client_ca)


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise TlsFilesError(f"{path} holds no certificate in PEM form") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFilesError(f"{path} cannot be read: {error.strerror}") from None
